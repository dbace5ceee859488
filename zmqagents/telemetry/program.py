"""A host as a program: where its log lines go, and what becomes of what agents print.

As a library the package installs no handler. The programs (``as_server start``, and the processes that it starts) call
`Program.start`, once for each process. From then on

    records of all loggers   go to stderr as text or JSON, and those of the package from INFO on into the `Ring`
    what code prints         to ``sys.stdout`` becomes such a record, whole lines with the ids of the call that has
                             printed them. So does what a call writes to ``sys.stderr``, and with JSON whatever anyone
                             writes there. Only `Program.say_first` writes to the real stdout

Lines are written by a thread of their own: who reads stderr and stops must not stop the router thread. Where too many
wait, further ones are dropped and counted. A process that an agent's code has forked writes its lines itself.

A process that runs agents of a host writes its lines to its host, marked as `MARK` and JSON, and `relay` makes records
of them there. In such a process the thread that logs writes its line, if there is room: the next step of an agent may
end the process, and its last words are to be known.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

from .lines import FIELDS, JsonLines, TextLines, event_of, fields_of, json_line
from .ring import Ring, RingHandler
from .settings import LogSettings

__all__ = ["MARK", "Program", "Speaker", "current", "lines_dropped", "output_log", "relay"]

MARK = "\x1e"  # before a line of a process that runs agents, for its host
MAX_WAITING = 10_000  # lines that are not written yet
MAX_LINE = 8192  # characters of what is printed; a longer line becomes several
FLUSH_S = 0.3  # how long the end of the process waits for what is not written; part of the 2 s after the grace
MAX_OPEN = 256  # calls that have printed half a line
OFF = logging.CRITICAL + 1  # a level that no line has

output_log = logging.getLogger("zmqagents.output")
_OURS = "zmqagents."  # the names of this package's own loggers begin so


class Speaker(NamedTuple):
    """The call whose code runs: ``key`` tells it from others, ``fields`` are its ids, ``is_over`` if it has ended."""

    key: object
    fields: Mapping[str, Any]
    is_over: Callable[[], bool]


Current = Callable[[], "Speaker | None"]


class Program:
    """The log of this process; see the module's docstring. ``speaker`` tells the call whose code runs."""

    def __init__(self, settings: LogSettings, host: str, speaker: Current, *, threaded: bool = True) -> None:
        self.settings = settings
        self.ring = Ring()
        self._about = fields_of(host=host)
        self._speaker = speaker
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._writer = LineWriter(sys.stderr, threaded, at_once=bool(settings.child))

    @classmethod
    def start(cls, settings: LogSettings, host: str, speaker: Current, *, threaded: bool = True) -> Program:
        """Begin to log, or go on in a fork of a process that does. By the main thread, once in a process.

        Not ``threaded``: each line is written by the thread that logs, for this process may fork.
        """
        global _program
        if _program is None:
            _program = cls(settings, host, speaker, threaded=threaded)
            _program.install()
        else:
            _program.go_on(threaded)
        return _program

    def go_on(self, threaded: bool) -> None:
        """This process is a fork of the one that has begun to log."""
        self._writer = LineWriter(self._stderr, threaded)
        self._handler.write_to(self._writer)

    def __repr__(self) -> str:
        return f"<Program [{self.settings.format}, {self.settings.level}] {self.ring!r}>"

    def install(self) -> None:
        """Install handlers, and take over ``sys.stdout`` and ``sys.stderr``."""
        settings = self.settings
        level = OFF if settings.level == "off" else logging.getLevelName(settings.level.upper())
        formatter = JsonLines() if settings.format == "json" else TextLines()
        handler = self._handler = (
            ChildHandler(self._writer, settings.child) if settings.child else WriterHandler(self._writer, formatter)
        )
        ring = RingHandler(self.ring)
        root = logging.getLogger()
        if not settings.child:  # first: most lines of agents that come and go are for the ring alone
            handler.addFilter(lambda record: record.levelno >= level or record.name == output_log.name)
        for each in (handler, ring):
            each.addFilter(self._add_ids)
            root.addHandler(each)
        root.setLevel(level)
        logging.getLogger("zmqagents").setLevel(min(level, logging.INFO))
        output_log.setLevel(logging.INFO)
        atexit.register(self.flush)
        logging.captureWarnings(settings.format == "json" or bool(settings.child))
        logging.raiseExceptions = False  # a full disk: what cannot be written is counted
        out = Capture(self._stdout, "stdout", self._take, lambda: True, self._speaker)
        err = Capture(self._stderr, "stderr", self._take, self._takes_stderr, self._speaker)
        contextlib.redirect_stdout(out).__enter__()  # for good
        contextlib.redirect_stderr(err).__enter__()

    def say_first(self, text: str) -> None:
        """Print a line to the real stdout, and `leave_stdout`. Raises OSError."""
        if self._stdout is not None:
            self._stdout.write(f"{text}\n")
            self._stdout.flush()
        self.leave_stdout()

    def leave_stdout(self) -> None:
        """Whatever is written to stdout from now on, also by programs that agents start, goes to stderr: with JSON as
        lines of the log.
        """
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            if self.settings.format == "json" and not self.settings.child:
                self._read_stdout(self._stdout.fileno())
            else:
                os.dup2(self._stderr.fileno(), self._stdout.fileno())

    def _read_stdout(self, fd: int) -> None:
        read_end, write_end = os.pipe()
        os.dup2(write_end, fd)
        os.close(write_end)

        def read() -> None:
            with open(read_end, encoding="utf-8", errors="backslashreplace") as lines:
                while line := lines.readline(MAX_LINE):
                    self._take(line.rstrip("\n"), "stdout", None)

        threading.Thread(target=read, name="zmqagents-stdout", daemon=True).start()

    def flush(self, limit_s: float = FLUSH_S) -> None:
        """Write what waits, for ``limit_s`` seconds at most."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Capture):
                stream.end()
        self._writer.flush(limit_s)

    @property
    def dropped(self) -> int:
        """Lines that were not written, for too many waited."""
        return self._writer.dropped

    def _takes_stderr(self) -> bool:
        """Whether what is written to stderr now becomes a record: else it is written as it is."""
        settings = self.settings
        if settings.format == "json" or settings.child:
            return True
        return settings.output != "stderr" and self._speaker() is not None

    def _take(self, text: str, stream: str, speaker: Speaker | None) -> None:
        """A whole line was printed."""
        fields = {} if speaker is None else dict(speaker.fields)
        if self.settings.output == "off" and speaker is not None:
            return
        if self.settings.output == "stderr":
            self._writer.put(text)
            return
        output_log.info("%s", text, extra=fields_of(stream=stream, **fields))

    def _add_ids(self, record: logging.LogRecord) -> bool:
        """Give a record the ids of the call whose code has made it, where it has none of its own."""
        attributes = vars(record)
        for key, value in self._about.items():
            attributes.setdefault(key, value)
        if "za_task_id" not in attributes and not record.name.startswith("zmqagents."):
            speaker = self._speaker()
            if speaker is not None:
                for key, value in fields_of(**speaker.fields).items():
                    attributes.setdefault(key, value)
        return True


_program: Program | None = None


def current() -> Program | None:
    """The program that this process is, None if it uses the package as a library."""
    return _program


def lines_dropped() -> int:
    """Log lines of this process that were not written."""
    return 0 if _program is None else _program.dropped


class LineWriter:
    """Writes lines to a stream: in a thread of its own, which starts with the first one.

    Not ``threaded``: in the thread that has the line. ``at_once``: there as well, if none waits and there is room.
    """

    def __init__(self, stream: TextIO, threaded: bool = True, *, at_once: bool = False) -> None:
        self.dropped = 0
        self._threaded = threaded
        self._at_once = at_once
        self._writing = threading.Lock()  # held by the thread that writes a line
        self._stream = stream
        self._lines: deque[str | threading.Event] = deque()  # an event is set when all before it is written
        self._some = threading.Event()
        self._lock = threading.Lock()
        self._pid = 0  # of the process whose thread it is
        self._is_stuck = False  # nobody reads

    def put(self, line: str) -> None:
        """Have a line written. Any thread; does not wait."""
        if not self._threaded or (self._pid != os.getpid() and not self._begin()):
            self._write(line)
            return
        if self._at_once and self._write_now(line):
            return
        if len(self._lines) >= MAX_WAITING:
            self.dropped += 1
            return
        self._lines.append(line)
        self._some.set()

    def flush(self, limit_s: float) -> None:
        """Wait until all is written, ``limit_s`` seconds at most, and not again if that was not enough."""
        if self._pid == os.getpid() and not self._is_stuck:
            written = threading.Event()
            self._lines.append(written)
            self._some.set()
            self._is_stuck = not written.wait(limit_s)

    def _begin(self) -> bool:
        """Start the thread; False in a forked process, and where there is no thread to be had."""
        with self._lock:
            if self._pid:
                return self._pid == os.getpid()
            try:
                threading.Thread(target=self._run, name="zmqagents-log", daemon=True).start()
            except RuntimeError:
                return False
            self._pid = os.getpid()
            return True

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            while self._lines:
                with self._writing:
                    line = self._lines.popleft()
                    if isinstance(line, str):
                        self._write(line)
                    else:
                        line.set()

    def _write_now(self, line: str) -> bool:
        """Write a line if no other one waits, and this one would not either; False if so."""
        if self._lines or not self._writing.acquire(blocking=False):
            return False
        try:
            if self._lines or not _has_room(self._stream):
                return False
            self._write(line)
            return True
        finally:
            self._writing.release()

    def _write(self, line: str) -> None:
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except Exception:  # closed, or a full disk
            self.dropped += 1


def _has_room(stream: TextIO) -> bool:
    """Whether a line can be written without waiting for whoever reads."""
    try:
        return bool(select.select((), (stream.fileno(),), (), 0)[1])
    except (OSError, ValueError):  # closed, or the number of its descriptor is too high
        return False


class WriterHandler(logging.Handler):
    """Formats records and hands them to a `LineWriter`."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Have the record written."""
        self._writer.put(self.format(record))

    def write_to(self, writer: LineWriter) -> None:
        """Hand the records to this writer from now on."""
        self._writer = writer


class ChildHandler(WriterHandler):
    """Writes records for the host that has started this process; see `relay`."""

    def __init__(self, writer: LineWriter, child: str) -> None:
        super().__init__(writer, JsonLines())
        self._child = child

    def format(self, record: logging.LogRecord) -> str:
        event = {**event_of(record), "child": self._child, "pid": os.getpid(), "created": record.created}
        return MARK + json_line(event)


def relay(line: str, child: str, pid: int) -> str:
    """Log a line that a process of this host has written, if this process logs; what the line says, for people.

    A line without `MARK` was written past Python, and is output without a call. "": it is one that every process of a
    host logs, and says nothing of its agents.
    """
    event: dict[str, Any] = {}
    if line.startswith(MARK):
        line = line[len(MARK) :]
        with contextlib.suppress(ValueError):
            event = json.loads(line)
    if not (isinstance(event, dict) and isinstance(event.get("msg"), str)):
        if _program is not None:
            output_log.info("%s", line, extra=fields_of(child=child, pid=pid, stream="stderr"))
        return line
    if _program is not None:
        _log_again(event)
    if _is_routine(event):
        return ""
    return f"{event['msg']}\n{event['exc']}" if "exc" in event else str(event["msg"])


def _is_routine(event: dict[str, Any]) -> bool:
    name = str(event.get("logger", ""))
    return event.get("level") in ("DEBUG", "INFO") and name.startswith(_OURS) and name != output_log.name


def _log_again(event: dict[str, Any]) -> None:
    """Log what a process of this host has logged."""
    logger = logging.getLogger(str(event.get("logger", output_log.name)))
    level = logging.getLevelName(str(event.get("level", "INFO")))
    record = logging.LogRecord(logger.name, level if isinstance(level, int) else logging.INFO, "", 0, "%s",
                               (event["msg"],), None)  # fmt: skip
    # Of users such a process knows one, that of its host, whoever the caller is.
    known = {name: event[name] for name in FIELDS if name in event and name not in ("host", "user")}
    created = event.get("created")
    vars(record).update(
        fields_of(**known), remote_traceback=str(event.get("exc", "")),
        created=created if isinstance(created, float) else record.created,
    )  # fmt: skip
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class Capture(io.TextIOBase):
    """Stands for ``sys.stdout`` or ``sys.stderr``: gives whole lines to ``take``, with the call that has printed them.

    What is printed while ``takes`` is false goes to the real stream at once. Other attributes are the real stream's.
    """

    def __init__(
        self, real: TextIO, name: str, take: Callable[[str, str, Speaker | None], None], takes: Callable[[], bool],
        speaker: Current,
    ) -> None:  # fmt: skip
        self._real = real
        self._name = name
        self._take = take
        self._takes = takes
        self._speaker = speaker
        # Lines that are not complete. Without a lock, which a fork might find taken: each thread and call has its own.
        self._open: dict[object, tuple[str, Speaker | None]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the real stream."""
        return self._real.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """That of the real stream."""
        return self._real.errors

    def fileno(self) -> int:
        """The descriptor of the real stream."""
        return self._real.fileno()

    def isatty(self) -> bool:
        """Never: what is written becomes lines of a log."""
        return False

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Take a text; its last line waits until it is complete."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._takes():
            return self._real.write(text)
        speaker = self._speaker()
        key: object = threading.get_ident() if speaker is None else speaker.key
        before = self._open.pop(key, None)
        *lines, rest = (text if before is None else before[0] + text).split("\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        if self._open:
            self._end_others()
        for line in lines:
            self._take(line.rstrip("\r"), self._name, speaker)
        if rest:
            self._open[key] = (rest, speaker)
        return len(text)

    def _end_others(self) -> None:
        """Take what calls have left incomplete that have ended."""
        others = list(self._open.items())
        for number, (key, (line, speaker)) in enumerate(others):
            if (speaker is not None and speaker.is_over()) or number < len(others) - MAX_OPEN:
                self._open.pop(key, None)
                self._take(line, self._name, speaker)

    def flush(self) -> None:
        """Flush the real stream."""
        with contextlib.suppress(ValueError, OSError):
            self._real.flush()

    def end(self) -> None:
        """Take what is not complete."""
        left, self._open = self._open, {}
        for line, speaker in left.values():
            self._take(line, self._name, speaker)
