"""How fast the host is, against what pyzmq itself can do on the same machine in the same minute.

    python -m benchmarks [--quick] [--only lat,thr] [--subjects echo,workers,zmqagents] [--json FILE]

Absolute figures say little: a call between two processes is mostly the cost of waking the other core, and the
same code gives 45 or 130 µs from one run to the next. So every figure is a ratio to a *floor*, a bare pyzmq
program that does nothing but carry the same payload over the same transport (see `floors`):

echo
    DEALER ↔ one-thread ROUTER, which unpacks and packs with msgpack: no system on pyzmq answers sooner.
workers
    `zmq.proxy` in C before four Python worker threads that do so: the honest ceiling for a host with threads.

All subjects are up at the same time and take turns: each round measures every subject once, in an order that
moves on from round to round, and a ratio is taken within its round. What is printed is the median over the
rounds and the spread, (largest − smallest) / median. A mode is a process of its own: *pinned* puts
caller and host on one core, where latency repeats, *free* leaves them to the scheduler.

`rounds` measures in one mode, `report` makes the table, `ours` is zmqagents through its public API alone.
"""
