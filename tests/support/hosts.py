"""Agents for the tests of hosts, and programs that launch hosts.

pytest's own process has threads and a live ZeroMQ context, so no host can be forked from it, and signals that
end a host would end the tests. A program is a process of its own: `running` starts one that has a host in any
of the launch modes, `output_of` and `started` run any source.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from actors import ISOLATION
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

ROOT = Path(__file__).parents[2]
MODES = ["fork", "fresh", "main"]  # "main": in the calling process, in its main thread
STUCK_S = 1e6
ENDS_WITHIN_S = 20  # a process that was sent a signal


class Worker(AgentBase):
    """Does little, for as long as it is told."""

    def echo(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    @async_func
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def read_line(self) -> str:
        return sys.stdin.readline()

    def switch_interval(self) -> float:
        return sys.getswitchinterval()

    def configured(self, name: str) -> str:
        return str(self.model_config(name)["model_name"])


class Parent(AgentBase):
    """Starts a process that outlives its host."""

    def start_one(self) -> int:
        child = multiprocessing.Process(target=time.sleep, args=(60,))
        child.start()
        return child.pid or 0


class Forker(AgentBase):
    """Forks processes and ends them."""

    def end_one(self, number: int) -> int | None:
        """The exit status of a forked process that has begun to sleep and is sent a signal."""
        fork = multiprocessing.get_context("fork")
        begun = fork.Event()
        child = fork.Process(target=_sleep, args=(begun,))
        child.start()
        begun.wait()
        os.kill(child.pid or 0, number)
        child.join(ENDS_WITHIN_S)
        status = child.exitcode
        child.kill()
        child.join()
        return status

    def end_a_bare_fork(self) -> int:
        """The same for ``os.fork``, and SIGTERM at once."""
        pid = os.fork()
        if pid == 0:
            time.sleep(ENDS_WITHIN_S)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def end_a_busy_fork(self, number: int) -> int:
        """The same for a process that only computes: the signal interrupts no system call."""
        return _end_a_busy_fork(number, lambda: (os.fork(), None))

    def end_a_busy_fork_with_a_terminal(self, number: int) -> int:
        return _end_a_busy_fork(number, os.forkpty)

    async def end_a_busy_fork_of_the_loop(self, number: int) -> int:
        return _end_a_busy_fork(number, lambda: (os.fork(), None))

    def pools(self, count: int) -> int:
        """Leaving the block of a `Pool` terminates its processes."""
        for _ in range(count):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(abs, [-1, -2])
        return count


def _end_a_busy_fork(number: int, fork: Callable[[], tuple[int, int | None]]) -> int:
    """``fork`` returns the pid, and the descriptor of the terminal that the process has got, if any."""
    begun_r, begun_w = os.pipe()
    pid, terminal = fork()
    if pid == 0:
        _compute(begun_w)
    os.read(begun_r, 1)
    os.kill(pid, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for fd in (begun_r, begun_w, terminal):
        if fd is not None:
            os.close(fd)
    return status


def _compute(begun_w: int) -> NoReturn:
    """Exit status 1 for Ctrl-C, and 0 if no signal has ended it."""
    end = time.monotonic() + ENDS_WITHIN_S
    try:
        os.write(begun_w, b"b")
        while time.monotonic() < end:
            pass
    except KeyboardInterrupt:
        os._exit(1)
    os._exit(0)


def _sleep(begun: Any) -> None:
    begun.set()
    while True:
        time.sleep(0.05)  # Python does not see a signal that comes just before a sleep until that is over


# ---------------------------------------------------------------- programs


def environment(**more: str) -> dict[str, str]:
    """For a program that imports the package, the helpers and the module of its test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


@contextlib.contextmanager
def started(source: str, *arguments: str, stderr: int | None = None, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A program with pipes on stdin and stdout; whatever becomes of the test, it does not outlive it."""
    program = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(**more),
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        yield program
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what was written and never read
            program.stdin.close()


def told(program: subprocess.Popen[str]) -> Any:
    """The next line that the program prints, which is JSON."""
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, "the program has ended, see its stderr"
    return json.loads(line)


def output_of(source: str, *arguments: str, timeout_s: float = 60, **more: str) -> Any:
    """What a program has printed, as JSON, once it has ended well."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment(**more), timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}, see its stderr; printed: {done.stdout}"
    return json.loads(done.stdout)


def as_server(*words: str, port: int | None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A verb of the shell for the host at ``port``, once it has ended."""
    command = [sys.executable, "-m", "zmqagents", *words, "--port", str(port)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=60)


# ---------------------------------------------------------------- a host in any mode


@dataclass
class Host:
    """A running host, and the program that has launched it."""

    server_id: str
    host: str
    port: int
    pid: int
    program: subprocess.Popen[str]

    def client(self, **options: Any) -> RpcClient:
        return RpcClient(self.host, self.port, **options)


@contextlib.contextmanager
def running(mode: str, **options: Any) -> Iterator[Host]:
    """A host with the class `Worker`, launched by a clean process; stopped in order at the end."""
    with started("import hosts; hosts.main()", mode, json.dumps(options)) as program:
        yield Host(**told(program), program=program)
        assert program.stdin is not None
        program.stdin.close()  # the program then shuts its host down
        assert program.wait(20) == 0


def main() -> None:
    """The program behind `running`: ``MODE OPTIONS_AS_JSON``."""
    mode, options = sys.argv[1], json.loads(sys.argv[2])
    options["start_method"] = "auto" if mode == "main" else mode
    options.setdefault("isolation", ISOLATION)
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker, Forker], **options)
    if mode == "main":
        threading.Thread(target=_attend, args=(server,), daemon=True).start()
        server.launch(in_subprocess=False)
    else:
        server.launch()
        _attend(server)


def _attend(server: RpcAgentServerLauncher) -> None:
    while not server.is_running:
        time.sleep(0.002)
    where = {"server_id": server.server_id, "host": server.host, "port": server.port, "pid": server.pid}
    print(json.dumps(where), flush=True)
    os.read(0, 1)  # not sys.stdin, whose lock this thread would hold when Python ends
    server.shutdown()


# ---------------------------------------------------------------- looking


def is_gone(pid: int) -> bool:
    """True once a process has ended with all its threads, even if nobody has waited for it."""
    try:
        process = psutil.Process(pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def freeze(pid: int | None) -> None:
    """Stop a process, as Ctrl-Z does; SIGCONT lets it go on. The signal alone takes effect a little after `os.kill`."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


@contextlib.contextmanager
def meanwhile(run: Callable[[threading.Event], object]) -> Iterator[None]:
    """In the block ``run`` goes on in a thread of its own, until the event that it is given is set at the end."""
    is_over = threading.Event()
    thread = threading.Thread(target=run, args=(is_over,))
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def free_port() -> int:
    """One that nobody listens on, nor 10,000 above it, which a cluster's node takes as well.

    Both are below those that the kernel gives away on its own, to connections too: such a port may have gone to another
    process by the time the server, or a host that was killed and comes back, asks for it. Tests that run beside these
    have others, for the same reason.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    while True:
        port = random.SystemRandom().randrange(10_000 + 1_250 * worker, 11_250 + 1_250 * worker)
        with contextlib.suppress(OSError), socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def eventually(happened: Callable[[], bool], within_s: float) -> bool:
    """Whether ``happened()`` is true at some moment of the next ``within_s`` seconds."""
    end = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def seconds_of(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start
