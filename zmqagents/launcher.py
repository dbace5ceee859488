"""Start and stop a host process: `RpcAgentServerLauncher`, and the private host behind a bare ``to_dist()``.

How the child comes to be (``start_method``):

* ``fork`` where that is safe: Linux, one thread in the process (a live ZeroMQ context counts, its threads are
  seen in /proc), no running event loop. A few milliseconds, and every class is there as it is.
* ``fresh``: a new interpreter with this one's flags and ``sys.path``. The settings and the classes are on its
  stdin, the classes as `trusted` pickles them, so those of ``__main__`` and of notebooks need cloudpickle.

The child binds, then reports where, or why not, as one line on a pipe; `launch` returns or raises then, so there
is no window between choosing a port and having it. A second pipe is the parent's life line: its end, however
the parent dies, ends the child within 2 s. Only the parent itself holds the other end; a fork of it lets go.

Stopping is one ladder, each step bounded and logged: control frame, SIGTERM, SIGKILL.

A host lives until it is stopped or the process that launched it ends, whether or not anything refers to its
launcher: what runs on it must not depend on when Python collects an object.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Literal, NoReturn

from . import control, endpoints, errors, trusted
from .client import Target, connect
from .config import DEFAULT_TIMEOUT_S, BrokerConfig, generate_server_id
from .frames import Op
from .proxy import AgentProxy, RpcClient

__all__ = ["RpcAgentServerLauncher", "distribute"]

log = logging.getLogger(__name__)

StartMethod = Literal["auto", "fork", "fresh"]
Bound = list[Any]  # `broker.Bound` as it comes out of JSON
LAUNCH_TIMEOUT_S = 30.0
CONTROL_TIMEOUT_S = 2.0  # for the host to agree that it will stop
END_WAIT_S = 2.0  # a host ends at most this long after its grace
TERM_WAIT_S = 2.0
KILL_WAIT_S = 5.0
EXIT_GRACE_S = 1.0  # for hosts that are still there when this process ends
THREAD_END_S = 0.02  # how long a thread that has been joined may still be seen in /proc


class RpcAgentServerLauncher:
    """A host: made with its settings, started by `launch`, ended by `shutdown`; or ``with`` it.

    The parameters are those of `BrokerConfig`, checked here (ConfigError). After `launch`, ``host`` and ``port``
    say where it is. ``start_method``: see the module. ``launch_timeout_s``: how long it may take to listen;
    importing the agents' files counts. Any thread may use it.
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, capacity: int = 32,
        pool_type: Literal["local", "redis"] = "local", redis_url: str = "redis://localhost:6379",
        max_pool_size: int = 8192, max_expire_time: float = 7200, max_timeout_seconds: float = 5,
        local_mode: bool = False, agent_dir: str | os.PathLike[str] | None = None,
        custom_agent_classes: Sequence[type] | None = None, server_id: str | None = None, studio_url: str | None = None,
        *, start_method: StartMethod = "auto", launch_timeout_s: float = LAUNCH_TIMEOUT_S,
        model_config_path: str | os.PathLike[str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        if start_method not in ("auto", "fork", "fresh"):
            raise errors.ConfigError(f"start_method must be 'auto', 'fork' or 'fresh', not {start_method!r}")
        if not isinstance(launch_timeout_s, (int, float)) or not 0 < launch_timeout_s < 1e6:
            raise errors.ConfigError(f"launch_timeout_s must be a number of seconds, not {launch_timeout_s!r}")
        try:
            self.config = BrokerConfig(
                host=host, port=port, capacity=capacity, pool_type=pool_type, redis_url=redis_url,
                max_pool_size=max_pool_size, max_expire_time=max_expire_time, max_timeout_seconds=max_timeout_seconds,
                local_mode=local_mode, agent_dir=None if agent_dir is None else os.fspath(agent_dir),
                server_id=server_id or "", studio_url=studio_url,
                model_config_path=None if model_config_path is None else os.fspath(model_config_path), **more,
            )  # fmt: skip
        except TypeError as exc:
            raise errors.ConfigError(str(exc).replace("BrokerConfig.__init__()", "RpcAgentServerLauncher")) from None
        self.start_method = start_method
        self.launch_timeout_s = launch_timeout_s
        self._classes = list(custom_agent_classes or ())
        for cls in self._classes:
            if not isinstance(cls, type):
                raise errors.ConfigError(f"custom_agent_classes holds classes, not {cls!r}")
        self._lock = threading.Lock()  # one thread starts or stops a child
        self._bound: Bound | None = None
        self._child: _Child | None = None
        self._here: _Here | None = None

    # ------------------------------------------------------------ where it is

    @property
    def host(self) -> str:
        """The name under which clients reach it."""
        return self.config.host

    @property
    def port(self) -> int | None:
        """The port that it listens on; before `launch` the one asked for."""
        bound = self._bound
        return self.config.port if bound is None else bound[2]

    @property
    def server_id(self) -> str:
        return self.config.server_id

    @property
    def pid(self) -> int | None:
        """The process that runs the host, None when there is none."""
        child = self._child
        if child is not None and child.poll() is None:
            return child.pid
        return os.getpid() if self._here is not None else None

    @property
    def is_running(self) -> bool:
        """True from the moment that it listens until it has ended, by whatever cause."""
        child, here = self._child, self._here
        return (here is not None and here.broker is not None) or (child is not None and child.poll() is None)

    @classmethod
    def generate_server_id(cls, host: str, port: int | None) -> str:
        """A short id, new at each call."""
        return generate_server_id(host, port)

    # ------------------------------------------------------------ start

    def launch(self, in_subprocess: bool = True) -> None:
        """Start the host; returns when it listens. Raises AddressInUse, ConfigError, LoadError, LaunchError ...

        ``in_subprocess`` False: it runs in the calling process, and this returns when it has been stopped, by
        `shutdown` in another thread, a client, or a signal (SIGTERM, SIGINT) if this is the main thread.
        """
        with self._lock:
            if self._here is not None or (self._child is not None and self._child.poll() is None):
                raise errors.LaunchError(f"{self.server_id} is running already")
            self._let_go()
            _let_go_of_the_dead()
            if self.config.open_to:
                log.warning("%s: insecure: %s can call its agents", self.server_id, self.config.open_to)
            if in_subprocess:
                self._launch_child()
                return
            here = self._here = _Here()
        self._serve(here)

    def _launch_child(self) -> None:
        start = _fork if self._method() == "fork" else _spawn
        child = start(self.config, self._classes)
        try:
            ready = child.wait_ready(self.launch_timeout_s)
            self._child, self._bound = child, ready["bound"]
            _running.add(self)
        except BaseException:
            child.kill()
            child.close()
            raise
        for failure in ready["left_out"]:
            log.warning("%s: agent file left out: %s", self.server_id, failure)

    def _method(self) -> str:
        if self.start_method == "fresh":
            return "fresh"
        reason = _why_not_fork()
        if reason and self.start_method == "fork":
            raise errors.LaunchError(f"start_method='fork' is not safe here: {reason}")
        return "fresh" if reason else "fork"

    def _serve(self, here: _Here) -> None:
        try:
            from . import hosting  # here, so that a program with its host elsewhere loads no broker

            _running.add(self)
            hosting.serve(self.config, self._classes, lambda bound: None, started=self._started)
        finally:
            _running.discard(self)
            self._bound = self._here = None
            here.ended.set()

    def _started(self, broker: Any) -> None:
        here = self._here
        assert here is not None
        self._bound = list(broker.bound)
        here.broker = broker
        if here.grace_s is not None:  # stopped before it could hear it
            broker.request_stop(here.grace_s)

    # ------------------------------------------------------------ stop

    def wait_until_terminate(self) -> None:
        """Block until the host has ended, by whatever cause. Returns at once when there is none."""
        here, child = self._here, self._child
        if here is not None:
            here.ended.wait()
        elif child is not None:
            child.wait(None)
            with self._lock:
                if self._child is child:
                    self._let_go()

    def shutdown(self, grace_s: float | None = None) -> None:
        """Stop the host: calls may go on for ``grace_s`` seconds (default 10), those left are answered then.

        Idempotent, and bounded by the grace and some seconds: a host that does not end is killed. In this process
        that is not possible: there, an agent's thread that does not return is left behind.
        """
        grace_s = self.config.grace_s if grace_s is None else grace_s
        here = self._here
        if here is not None:
            here.stop(grace_s)
            return
        with self._lock:
            child, bound = self._child, self._bound
            if child is None or bound is None:
                return
            try:
                self._stop_child(child, bound, grace_s)
            finally:  # a second Ctrl-C meanwhile must not leave it behind
                child.kill()
                self._let_go()

    def _stop_child(self, child: _Child, bound: Bound, grace_s: float) -> None:
        if child.poll() is not None:
            return
        try:
            control.send_stop(bound[3], grace_s, timeout=CONTROL_TIMEOUT_S)
            if child.wait(grace_s + END_WAIT_S) is not None:
                return
            log.warning("%s did not end %g s after its grace: SIGTERM", self.server_id, END_WAIT_S)
        except errors.ZmqAgentsError as exc:
            if child.poll() is not None:
                return
            log.warning("%s did not take the stop frame (%s): SIGTERM", self.server_id, exc)
        child.signal(signal.SIGTERM)
        if child.wait(TERM_WAIT_S) is None:
            log.warning("%s did not end on SIGTERM: SIGKILL", self.server_id)

    def _let_go(self) -> None:
        """Forget a child that has ended. Called with the lock."""
        child, self._child, self._bound = self._child, None, None
        _running.discard(self)
        if child is not None:
            child.close()
            if child.poll() != 0:  # it could not clean up after itself
                endpoints.list_hosts()

    def __enter__(self) -> RpcAgentServerLauncher:
        self.launch()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = f"pid {self.pid}, port {self.port}" if self.is_running else "not running"
        return f"<RpcAgentServerLauncher {self.server_id}: {state}>"


class _Here:
    """A host that runs in this process, in the thread that called `launch`."""

    def __init__(self) -> None:
        self.thread_id = threading.get_ident()
        self.broker: Any = None  # once it can be asked to stop
        self.grace_s: float | None = None
        self.ended = threading.Event()

    def stop(self, grace_s: float) -> None:
        self.grace_s = grace_s
        if self.broker is not None:
            self.broker.request_stop(grace_s)
        if threading.get_ident() != self.thread_id:  # else a signal handler of the very thread that would end it
            self.ended.wait(grace_s + END_WAIT_S)


def _why_not_fork() -> str:
    """Why a fork would not be safe now, "" if it is."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} does not allow it"
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return "an event loop is running"
    end = time.monotonic() + THREAD_END_S
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if threading.active_count() > 1 or time.monotonic() > end:
            return f"the process has {threads} threads (a live ZeroMQ context has some)"
        time.sleep(0.001)
    return ""


# ---------------------------------------------------------------- child processes


class _Child:
    """A host process, seen from its parent: its pid, the pipe of its report and the life line. Any thread."""

    def __init__(self, pid: int, ready_r: int, life_w: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._ready_r = ready_r
        self._popen = popen
        self._status: int | None = None
        self._lock = threading.Lock()
        self._pidfd = _pidfd(pid)
        self._fds = [fd for fd in (ready_r, life_w, self._pidfd) if fd is not None]

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """The child's report that it listens; raises what went wrong there, or LaunchError after ``timeout_s``."""
        end = time.monotonic() + timeout_s
        data = b""
        while not data.endswith(b"\n"):
            # The process, too: a stranger's fork at the wrong moment may hold the pipe open.
            if not _readable([self._ready_r, self._pidfd], end - time.monotonic()):
                raise errors.LaunchError(
                    f"the host process did not listen within {timeout_s:g} s and was ended; if its agents' files take "
                    f"so long to import, raise launch_timeout_s"
                )
            chunk = os.read(self._ready_r, 65_536) if _readable([self._ready_r], 0) else b""
            if not chunk:
                raise errors.LaunchError(f"the host process ended before it listened ({self._how_it_ended()})")
            data += chunk
        report: dict[str, Any] = json.loads(data)
        if "error" in report:
            raise _launch_error(report["error"])
        return report

    def _how_it_ended(self) -> str:
        status = self.wait(KILL_WAIT_S)
        if status is None:
            return "it closed its pipe and goes on"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}, see its stderr"

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs. Reaps the process."""
        with self._lock:
            if self._status is None:
                self._status = self._look()
            return self._status

    def _look(self) -> int | None:
        if self._popen is not None:
            return self._popen.poll()
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # reaped by somebody else, or this is a fork of the launching process
            return -1
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, timeout_s: float | None) -> int | None:
        """Wait for its end; None after ``timeout_s`` seconds."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            if self._pidfd is not None:
                _readable([self._pidfd], left)
            else:
                time.sleep(0.01)
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs: not to another process that has its number by now."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._status is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, with what its agents started and did not put apart (its process group), and reap it."""
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has no group of its own yet
            os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)
        self.wait(KILL_WAIT_S)

    def close(self) -> None:
        """Close the pipes; idempotent."""
        with self._lock:
            fds, self._fds = self._fds, []
        for fd in fds:
            if fd in _own_ends:  # else this is a fork of the launching process, which has closed its copies
                _own_ends.discard(fd)
                os.close(fd)


def _pidfd(pid: int) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return None
    _own_ends.add(fd)
    return fd


def _readable(fds: Sequence[int | None], timeout_s: float | None) -> bool:
    """True as soon as one of ``fds`` can be read, False after ``timeout_s`` seconds. Not select: it ends at 1,024."""
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def _launch_error(data: dict[str, Any]) -> Exception:
    """What the child says went wrong, as the class that it is there; LaunchError for what is not ours."""
    module, _, name = data["type"].partition(":")
    kind = getattr(errors, name, None) if module == errors.__name__ else None
    if isinstance(kind, type) and issubclass(kind, errors.ZmqAgentsError):
        return kind(data["message"])
    error = errors.LaunchError(f"the host process could not start: {name}: {data['message']}")
    error.__cause__ = _InChild(str(data.get("traceback", "")))
    return error


class _InChild(Exception):
    """The child's traceback, printed above the parent's."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# The parent's ends of the pipes of all its children, and descriptors of the processes. A fork of the parent must not
# hold them: a life line ends only when every copy of its end is closed.
_own_ends: set[int] = set()
_pipes_lock = threading.RLock()  # held by a fork, so that it finds every end in `_own_ends`


def _let_go_after_fork() -> None:
    global _pipes_lock, _private, _private_lock
    _pipes_lock = threading.RLock()
    _private_lock = threading.Lock()
    _private = None
    for launcher in list(_running):  # theirs may be held by threads that are not here
        launcher._lock = threading.Lock()
        if launcher._child is not None:
            launcher._child._lock = threading.Lock()
    _running.clear()
    for fd in _own_ends:
        with contextlib.suppress(OSError):
            os.close(fd)
    _own_ends.clear()


os.register_at_fork(
    before=lambda: _pipes_lock.acquire(),
    after_in_parent=lambda: _pipes_lock.release(),
    after_in_child=_let_go_after_fork,
)


def _pipes() -> tuple[int, int, int, int]:
    with _pipes_lock:
        ready_r, ready_w = os.pipe()
        life_r, life_w = os.pipe()
        _own_ends.update((ready_r, life_w))
    return ready_r, ready_w, life_r, life_w


@contextlib.contextmanager
def _new_pipes() -> Iterator[tuple[int, int, int, int]]:
    """Both pipes; the child's ends are closed here afterwards, ours too if the child could not be started."""
    ready_r, ready_w, life_r, life_w = _pipes()
    try:
        yield ready_r, ready_w, life_r, life_w
    except BaseException:
        for fd in (ready_r, life_w):
            _own_ends.discard(fd)
            os.close(fd)
        raise
    finally:
        os.close(ready_w)
        os.close(life_r)


def _fork(config: BrokerConfig, classes: Sequence[type]) -> _Child:
    from . import hosting  # in the parent, once, and not in every child

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, or closed
            stream.flush()
    with _new_pipes() as (ready_r, ready_w, life_r, life_w):
        try:
            pid = os.fork()
        except OSError as exc:
            raise errors.LaunchError(f"cannot fork: {exc}") from exc
        if pid == 0:
            _run_forked(hosting, config, classes, ready_w, life_r)
        return _Child(pid, ready_r, life_w)


def _run_forked(hosting: Any, config: BrokerConfig, classes: Sequence[type], ready_w: int, life_r: int) -> NoReturn:
    """In the child: the parent's code, its finally blocks and exit handlers belong to the parent."""
    try:
        os.setsid()  # Ctrl-C at the terminal is for the parent, which stops us in order
        hosting.leave(hosting.run_child(lambda: (config, classes), hosting.Report(ready_w), life_r))
    finally:
        os._exit(1)


_BOOT = """\
import pickle, sys
source = open(0, "rb", closefd=False)
sys.path[:] = pickle.load(source)
from zmqagents.hosting import main
main(source, *map(int, sys.argv[2:]))
"""


def _spawn(config: BrokerConfig, classes: Sequence[type]) -> _Child:
    if not sys.executable:
        raise errors.LaunchError("there is no Python interpreter to start (sys.executable is empty): use 'fork'")
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    with _payload(config, classes) as payload, _new_pipes() as (ready_r, ready_w, life_r, life_w):
        try:
            popen = subprocess.Popen(
                [sys.executable, *flags, "-c", _BOOT, config.server_id, str(ready_w), str(life_r)],
                stdin=payload, pass_fds=(ready_w, life_r), start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise errors.LaunchError(f"cannot start {sys.executable}: {exc}") from exc
        return _Child(popen.pid, ready_r, life_w, popen)


def _payload(config: BrokerConfig, classes: Sequence[type]) -> IO[bytes]:
    """What a fresh interpreter reads on its stdin. A file, not a pipe: writing it cannot block."""
    try:
        pickled = trusted.dumps(list(classes))
    except errors.MissingExtra:
        raise
    except Exception as exc:  # pickling runs the classes' own code
        names = ", ".join(cls.__qualname__ for cls in classes)
        raise errors.LaunchError(
            f"the agent classes ({names}) cannot be sent to a new interpreter: {exc}; put them into a module, or "
            f"launch before any thread is started, so that the host can be a fork"
        ) from exc
    # Our own place last: in case the package was found by an entry that is gone from the path.
    place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = [os.path.abspath(entry) if os.path.isdir(entry or ".") else entry for entry in sys.path]
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(pickle.dumps([*path, place]) + pickle.dumps(config) + pickled)
    file.seek(0)
    return file


_running: set[RpcAgentServerLauncher] = set()


def _let_go_of_the_dead() -> None:
    """Hosts that ended by themselves, and whose launchers perhaps nobody has any more, must not stay as zombies."""
    for launcher in list(_running):
        child = launcher._child
        if child is not None and child.poll() is not None and launcher._lock.acquire(blocking=False):
            try:
                if launcher._child is child:
                    launcher._let_go()
            finally:
                launcher._lock.release()


@atexit.register
def _shut_down_all() -> None:
    """What this process launched and did not stop ends with it, in order rather than by its life line."""
    for launcher in list(_running):
        with contextlib.suppress(Exception):
            launcher.shutdown(EXIT_GRACE_S)


# ---------------------------------------------------------------- to_dist


_private_lock = threading.Lock()
_private: _PrivateHost | None = None


class _PrivateHost:
    """The one host of this process that only it can reach, and what is sent to it."""

    def __init__(self) -> None:
        self.launcher = RpcAgentServerLauncher(private=True)
        self.launcher.launch()
        bound = self.launcher._bound
        assert bound is not None
        self.link = connect(Target("", None, ipc=bound[3]))
        self.link.settle()  # so that it is known to take pickles
        self._client = RpcClient(link=self.link)
        self._known: weakref.WeakSet[type] = weakref.WeakSet()

    def learn(self, cls: type) -> None:
        """Send a class that the host has not yet. A notebook's cell that runs again makes a new one of its name."""
        if cls not in self._known:
            self._client._manage(Op.REGISTER, cls, timeout=DEFAULT_TIMEOUT_S)  # its module may be slow to import
            self._known.add(cls)

    def end(self) -> None:
        self._client.close()
        self.launcher.shutdown()


def private_host() -> _PrivateHost:
    """Starts now if it has not, and ends with the process."""
    global _private
    with _private_lock:
        if _private is not None and not _private.launcher.is_running:
            _private.end()  # it has died: its agents are gone, the next ones get a new host
            _private = None
        if _private is None:
            _private = _PrivateHost()
        return _private


def stop_private_host() -> None:
    """End the private host of this process, if there is one; the next bare ``to_dist()`` starts another."""
    global _private
    with _private_lock:
        private, _private = _private, None
        if private is not None:
            private.end()


def distribute(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], agent_id: str | None, where: Mapping[str, Any]
) -> AgentProxy:
    """What ``to_dist`` does: make the agent on the host that ``where`` names, or on the private one.

    ``where`` is only read: host, port, transport, timeout (the default deadline in seconds of the proxy's calls).
    """
    unknown = sorted(set(where) - {"host", "port", "transport", "timeout"})
    if unknown:
        raise errors.ConfigError(f"to_dist does not know {', '.join(unknown)}; it takes host, port, transport, timeout")
    timeout = where.get("timeout", DEFAULT_TIMEOUT_S)
    if where.get("port") is not None:
        host = where.get("host") or "localhost"
        client = RpcClient(host, where["port"], transport=where.get("transport"), timeout=timeout)
    else:
        given = [name for name in ("host", "transport") if where.get(name) is not None]
        if given:
            raise errors.ConfigError(f"to_dist with a {given[0]} needs a port, too")
        private = private_host()
        private.learn(cls)
        client = RpcClient(link=private.link, timeout=timeout)
    return client.create_agent(cls, *args, agent_id=agent_id, **kwargs)
