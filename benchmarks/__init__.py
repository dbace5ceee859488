"""How fast the host is, against what pyzmq itself can do on the same machine in the same minute.

    python -m benchmarks [--quick] [--only B1,B4] [--transport ipc,curve] [--store local] [--peers all]
                         [--json FILE] [--markdown FILE] [--charts DIR] [--compare OLD.json] [--load FILE]

Absolute figures say little: a call between two processes is mostly the cost of waking the other core, and the
same code gives 45 or 130 µs from one run to the next. So where it can be, a figure is a ratio to a *floor*, a bare
pyzmq program that does nothing but carry the same payload over the same transport and pack and unpack it with
msgpack on both sides (see `floors`):

echo
    DEALER ↔ one-thread ROUTER: no system on pyzmq answers sooner.
workers
    `zmq.proxy` in C before four Python worker threads: the honest ceiling for a host with threads.

Whoever is measured is a *subject*: a server process and client processes, which the benchmark starts and tells what
to do (`driver`). The loops that are timed (`loops`) are the same for all: floors, zmqagents, peers. All subjects of a
case are up at the same time and take turns: each round measures every one of them once, in an order that moves on
from round to round, and a ratio is taken within its round. What is printed is the median over the rounds and
the spread, (third quartile − first quartile) / median.

A case (`cases`, one small script for each budget, see `budgets`) is run as a process of its own for each
mode and transport. *Pinned* puts caller and host on one core, where latency repeats; *free* leaves them to the
scheduler. zmqagents is used through its public API alone, with the settings that a user gets who says nothing.

    __main__   the command                     driver    one process of a subject
    budgets    what is bounded, and by what    loops     what is timed
    report     medians, ratios, ✓ and ✗        floors    the floors
    charts     pictures for the documentation  ours      zmqagents
    soak       ten minutes at half load        peers     other systems, each in its own environment
    crowd      200 clients of one subject
    attacks    one user against another        attackers what one user can do
"""
