"""A host process from inside: from a `BrokerConfig` to a broker that answers, and to its end.

The same `serve` runs in a forked child, in a fresh interpreter and in the calling process, so a setting cannot
be lost in one of them. The main thread only waits (for a signal, or for the end); the router has its own thread.

A child process (`run_child`) watches its parent from its first moment on, while agent files are still being
imported, and ends by ``os._exit``: an agent's thread may be stuck for ever, and nothing waits for it. Exit handlers
(`atexit`) therefore do not run in a child.

    exit status   0 stopped as asked    75 the parent process is gone    1 it failed
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from . import errors, loader, proxy, trusted
from .broker import Bound, Broker
from .config import BrokerConfig
from .host import ClassTable
from .models import ModelConfigs, load_model_configs_file

__all__ = ["EXIT_ORPHANED", "build", "main", "run_child", "serve"]

log = logging.getLogger(__name__)

EXIT_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h
ORPHAN_GRACE_S = 0.25
ROUTER_LIMIT_S = 0.3  # the first router thread has handed over to another one, perhaps, and is stuck
ORPHAN_LIMIT_S = 1.8  # an orphan is gone within 2 s, whatever its agents do

Ready = Callable[[Bound], None]


def build(config: BrokerConfig, classes: Sequence[type], *, failures: list[errors.LoadError] | None = None) -> Broker:
    """A broker with its classes and model configs, not yet bound. Raises LoadError, ConfigError, LaunchError.

    ``failures`` gets the errors of agent files that were left out; None: they are logged.
    """
    table = ClassTable(classes)
    if config.agent_dir is not None:
        for cls in loader.load_agents_from_dir(config.agent_dir, failures=failures):
            table.add(cls)
    models = ModelConfigs()
    if config.model_config_path is not None:
        models.add(load_model_configs_file(config.model_config_path))
    try:
        broker = Broker(
            config, table, models, bind_reference=proxy.bind_reference,
            fetch_far=proxy.fetch_far, own_client=lambda: proxy.RpcClient(link=broker.link),
            pickler=trusted.dumps if config.private else None, unpickler=trusted.loads if config.private else None,
        )  # fmt: skip
    except errors.StoreUnavailable as exc:
        raise errors.LaunchError(f"the store for results cannot be reached: {exc}") from None
    return broker


def serve(
    config: BrokerConfig, classes: Sequence[type], ready: Ready, *,
    started: Callable[[Broker], None] | None = None, failures: list[errors.LoadError] | None = None,
) -> int:  # fmt: skip
    """Run a host in this process until it is stopped; the exit status, 0.

    ``started`` gets the broker as soon as it can be asked to stop, then ``ready`` is called once: it listens.
    Called in the main thread, it handles signals meanwhile: SIGTERM and SIGINT drain, the second one ends at once.
    Raises what `build` raises, AddressInUse, and whatever made the router thread fail. When it returns, every
    socket and file is closed; a thread that is stuck in an agent's code is left behind.
    """
    _raise_file_limit()
    broker = build(config, classes, failures=failures)
    try:
        bound = broker.bind()
    except BaseException:
        broker.abandon()
        raise
    if started is not None:
        started(broker)
    proxy.adopt(broker.link)
    registration = None
    with _switch_interval(config.switch_interval_s), _signals(broker):
        # A daemon, for an agent's code may be stuck in it.
        router = threading.Thread(target=broker.run, name="zmqagents-router", daemon=True)
        router.start()
        try:
            if config.studio_url and bound.port is not None:
                from . import studio  # 20 ms that only those who have one pay

                registration = studio.register_in_background(
                    config.studio_url, server_id=bound.server_id, host=bound.host, port=bound.port
                )
            ready(bound)
            broker.finished.wait()
        finally:
            broker.request_stop(0.0)  # nothing if it has stopped
            if registration is not None:
                registration.stop(1.0)
            broker.finished.wait()
            router.join(ROUTER_LIMIT_S)
            proxy.disown(broker.link)
    if broker.crash is not None:
        raise broker.crash
    return 0


def _raise_file_limit() -> None:
    """Each client takes a descriptor; the soft limit is often 1024."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_intervals_s: list[float] = []  # what the hosts in this process ask for
_interval_before_s = 0.0
_intervals_lock = threading.Lock()


@contextlib.contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    """A thread that computes keeps the GIL for this long: the router must not wait 5 ms for its turn.

    The setting is of the whole process, so the shortest of all hosts in it holds until the last one ends.
    """
    global _interval_before_s
    with _intervals_lock:
        if not _intervals_s:
            _interval_before_s = sys.getswitchinterval()
        _intervals_s.append(seconds)
        sys.setswitchinterval(min(_intervals_s))
    try:
        yield
    finally:
        with _intervals_lock:
            _intervals_s.remove(seconds)
            sys.setswitchinterval(min(_intervals_s, default=_interval_before_s))


@contextlib.contextmanager
def _signals(broker: Broker) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        seen.append(number)
        broker.request_stop(None if len(seen) == 1 else 0.0)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: set by C code


# ---------------------------------------------------------------- a child process


class Report:
    """The child's one line to its parent; says nothing when it is said already or nobody listens any more."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def say(self, message: dict[str, Any]) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with contextlib.suppress(OSError), open(fd, "wb") as pipe:
            pipe.write(json.dumps(message).encode() + b"\n")


def run_child(load: Callable[[], tuple[BrokerConfig, Sequence[type]]], report: Report, life_fd: int) -> int:
    """The whole life of a child, in its main thread: load, listen, report, serve. Never raises; the exit status.

    ``life_fd`` is the read end of a pipe whose other end the parent holds and never writes to.
    """
    life = _LifeLine(life_fd)
    failures: list[errors.LoadError] = []

    def ready(bound: Bound) -> None:
        report.say({"bound": list(bound), "left_out": [str(failure) for failure in failures]})

    try:
        _forget_parents_signals()
        life.watch()
        config, classes = load()
        _close_stdin(life_fd)
        _keep_sockets_to_ourselves()
        status = serve(config, classes, ready, started=life.end_this, failures=failures)
    except BaseException as exc:  # the parent waits for one line, whatever it says
        report.say({"error": errors.describe(exc)})
        return 1
    if life.is_cut:
        log.warning("%s has ended because its parent process is gone", config.server_id)
        return EXIT_ORPHANED
    return status


class _LifeLine:
    """Ends this process when its parent is gone, by whatever death: then the pipe has no writer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._broker: Broker | None = None
        self.is_cut = False
        os.set_inheritable(fd, False)  # it came through an exec

    def end_this(self, broker: Broker) -> None:
        """``broker`` is what must be stopped in order."""
        self._broker = broker

    def watch(self) -> None:
        threading.Thread(target=self._watch, name="zmqagents-life", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._fd, 64):
                pass
        self.is_cut = True
        # Nothing here may block, so there is no logging: what is behind stderr may be gone or full.
        if self._broker is not None:
            self._broker.request_stop(ORPHAN_GRACE_S)
            time.sleep(ORPHAN_LIMIT_S)
        os._exit(EXIT_ORPHANED)


def _forget_parents_signals() -> None:
    """A forked child has the parent's handlers, which are about the parent; both kinds have its signal mask."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


def _close_stdin(life_fd: int) -> None:
    """The terminal's input is for the parent; in a fresh interpreter it was the payload, read by now."""
    if life_fd == 0:  # the parent has no stdin, and the number was free
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the old one may have read ahead


def _keep_sockets_to_ourselves() -> None:
    """Processes that agents start with `multiprocessing` must not be forks of this one.

    A fork would hold copies of the listening sockets, and the port would stay taken after our death. A bare
    ``os.fork()`` in an agent does just that. Python has this start method as its default from 3.14 on.
    """
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("forkserver")


def leave(status: int) -> None:
    """End the process now; what was printed comes out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def main(source: BinaryIO, ready_fd: int, life_fd: int) -> None:
    """A fresh interpreter whose launcher has put the payload, config and classes, on ``source``. Never returns."""
    os.set_inheritable(ready_fd, False)

    def load() -> tuple[BrokerConfig, Sequence[type]]:
        config: BrokerConfig = pickle.load(source)
        classes: Sequence[type] = trusted.loads(source.read())
        return config, classes

    leave(run_child(load, Report(ready_fd), life_fd))
