"""A host process from inside: from a `BrokerConfig` to a broker that answers, and to its end.

The same `serve` runs in a forked child, in a fresh interpreter and in the calling process, so a setting cannot
be lost in one of them. The main thread only waits (for a signal, or for the end); the router has its own thread.

    exit status   0 stopped as asked    75 the parent process is gone    1 it failed
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import errors, loader, proxy, trusted
from .broker import Bound, Broker
from .config import BrokerConfig
from .host import ClassTable
from .models import ModelConfigs, load_model_configs_file

__all__ = ["EXIT_ORPHANED", "serve"]

log = logging.getLogger(__name__)

EXIT_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h
ORPHAN_GRACE_S = 0.5
ORPHAN_LIMIT_S = 1.5  # an orphan is gone within 2 s

Ready = Callable[[Bound], None]


def build(config: BrokerConfig, classes: Sequence[type], *, failures: list[errors.LoadError] | None = None) -> Broker:
    """A broker with its classes and model configs, not yet bound. Raises LoadError, ConfigError, StoreUnavailable."""
    table = ClassTable(classes)
    if config.agent_dir is not None:
        for cls in loader.load_agents_from_dir(config.agent_dir, failures=failures):
            table.add(cls)
    models = ModelConfigs()
    if config.model_config_path is not None:
        models.add(load_model_configs_file(config.model_config_path))
    broker = Broker(
        config, table, models, bind_reference=proxy.bind_reference,
        own_client=lambda: proxy.RpcClient(link=broker.link),
        pickler=trusted.dumps if config.private else None, unpickler=trusted.loads if config.private else None,
    )  # fmt: skip
    return broker


def serve(
    config: BrokerConfig, classes: Sequence[type], ready: Ready, *,
    life_fd: int | None = None, started: Callable[[Broker], None] | None = None,
    failures: list[errors.LoadError] | None = None,
) -> int:  # fmt: skip
    """Run a host in this process until it is stopped; the exit status.

    ``ready`` is called once it listens. ``life_fd``: a pipe whose end means that the parent is gone. Signals are
    handled when this is the main thread: SIGTERM and SIGINT drain, the second one ends at once.
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
        router = threading.Thread(target=broker.run, name="zmqagents-router")
        router.start()
        try:
            if life_fd is not None:
                threading.Thread(target=_watch_parent, args=(broker, life_fd), name="zmqagents-life", daemon=True).start()
            if config.studio_url and bound.port is not None:
                from . import studio  # 20 ms that only those who have one pay

                registration = studio.register_in_background(
                    config.studio_url, server_id=bound.server_id, host=bound.host, port=bound.port
                )
            ready(bound)
            broker.finished.wait()
        finally:
            broker.request_stop(0.0)  # nothing if it has stopped
            router.join()
            if registration is not None:
                registration.stop(1.0)
            proxy.disown(broker.link)
    return 0


def _raise_file_limit() -> None:
    """Each client takes a descriptor; the soft limit is often 1024."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    """A thread that computes keeps the GIL for this long: the router must not wait 5 ms for its turn."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


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
            signal.signal(number, handler)


def _watch_parent(broker: Broker, life_fd: int) -> None:
    """Block until the parent's end of the pipe is closed, by whatever death."""
    with contextlib.suppress(OSError):
        while os.read(life_fd, 64):
            pass
    if broker.finished.is_set():
        return
    log.warning("%s: the parent process is gone, ending", broker.config.server_id)
    broker.request_stop(ORPHAN_GRACE_S)
    broker.finished.wait(ORPHAN_LIMIT_S)
    os._exit(EXIT_ORPHANED)


# ---------------------------------------------------------------- a child process


def run_child(load: Callable[[], tuple[BrokerConfig, Sequence[type]]], ready_fd: int, life_fd: int) -> int:
    """The whole life of a child: report on ``ready_fd`` as one JSON line, serve, end. Never raises."""
    try:
        config, classes = load()

        def ready(bound: Bound) -> None:
            _report(ready_fd, {"bound": list(bound), "pid": os.getpid()})

        return serve(config, classes, ready, life_fd=life_fd)
    except BaseException as exc:  # the parent waits for one line, whatever it says
        _report(ready_fd, {"error": errors.describe(exc)})
        return 1


def _report(fd: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # said already, or nobody listens
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)


def main() -> None:
    """``python -m zmqagents.hosting READY_FD LIFE_FD``: a fresh interpreter; its payload is on stdin."""
    ready_fd, life_fd = int(sys.argv[1]), int(sys.argv[2])

    def load() -> tuple[BrokerConfig, Sequence[type]]:
        with open(0, "rb", closefd=False) as stdin:
            payload = trusted.loads(stdin.read())
        sys.path[:] = payload["path"]
        config: BrokerConfig = payload["config"]
        classes: Sequence[type] = trusted.loads(payload["classes"])
        return config, classes

    status = run_child(load, ready_fd, life_fd)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an agent's thread may be stuck for ever: nothing waits for it


if __name__ == "__main__":
    main()
