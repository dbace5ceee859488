"""The main function of a host's process, whether the process is a fork or a new interpreter.

The child loads its configuration, opens its sockets, reports where it listens as one line of JSON on a pipe to its
parent, and serves until it is stopped or its parent is gone. An error before the report is the report.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NoReturn

from .. import codec, errors
from ..agents.factories.factory import Maker
from ..broker.listening import Bound
from ..codec import pickling
from ..config import BrokerConfig
from ..process.life_line import EXIT_ORPHANED, LifeLine
from ..process.signals import (
    close_stdin,
    forget_parents_signals,
    keep_sockets_to_ourselves,
    leave,
    show_stacks_on_request,
)
from ..tracing import provider
from . import logs
from .serve import serve

log = logging.getLogger(__name__)


class Report:
    """The child's one line to its parent."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # it came through an exec, perhaps
        self._fd: int | None = fd

    def say(self, message: dict[str, Any]) -> bool:
        """False if it is said already; nothing happens when the parent has closed its end."""
        fd, self._fd = self._fd, None
        if fd is None:
            return False
        with contextlib.suppress(OSError), open(fd, "wb") as pipe:
            pipe.write(json.dumps(message).encode() + b"\n")
        return True


def run_child(load: Callable[[], tuple[BrokerConfig, Sequence[Maker]]], report: Report, life_fd: int) -> int:
    """The whole life of a child, in its main thread: load, listen, report, serve. Never raises; the exit status.

    ``life_fd`` is the read end of a pipe whose other end the parent holds and never writes to.
    """
    life = LifeLine(life_fd)
    failures: list[errors.LoadError] = []

    def ready(bound: Bound) -> None:
        report.say({"bound": list(bound), "left_out": [str(failure) for failure in failures]})

    try:
        forget_parents_signals()
        show_stacks_on_request()
        life.watch()
        config, classes = load()
        program = logs.begin(config)
        if program is not None:
            program.leave_stdout()
        if config.otel:
            provider.begin(config.server_id)
        if config.types:
            codec.registry.trust(config.types)  # for the results of the calls that agents make
        close_stdin(life_fd)
        keep_sockets_to_ourselves()
        status = serve(
            config,
            classes,
            ready,
            started=lambda broker: life.stop_by(broker.request_stop),
            failures=failures,
            own_process=True,
        )
    except BaseException as exc:  # the parent waits for one line, whatever it says
        report.say({"error": errors.describe(exc)})
        return 1
    finally:
        provider.flush()
        logs.flush()
    if life.is_cut:
        log.warning("%s has ended because its parent process is gone", config.server_id)
        return EXIT_ORPHANED
    return status


def run_forked(config: BrokerConfig, classes: Sequence[Maker], ready_fd: int, life_fd: int) -> NoReturn:
    """The whole life of a fork of the launching process."""
    leave(run_child(lambda: (config, classes), Report(ready_fd), life_fd))


def main(source: BinaryIO, ready_fd: str, life_fd: str) -> NoReturn:
    """A fresh interpreter whose launcher has put the payload, config and classes, on ``source``."""
    leave(run_child(lambda: load_payload(source), Report(int(ready_fd)), int(life_fd)))


def load_payload(source: BinaryIO) -> tuple[BrokerConfig, Sequence[Maker]]:
    """What `children.spawn` has written, but for the path."""
    config: BrokerConfig = pickle.load(source)
    known: bytes = pickle.load(source)
    if known:
        from ..codec.classes.carried import take_over

        take_over(known)
    classes: Sequence[Maker] = pickling.loads(source.read())
    return config, classes
