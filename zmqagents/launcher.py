"""Start and stop a host process: `RpcAgentServerLauncher`, and the private host behind a bare ``to_dist()``.

How the child comes to be (``start_method``):

* ``fork`` where that is safe: Linux, one thread in the process (a live ZeroMQ context counts, its threads are
  seen in /proc), no running event loop. A few milliseconds, and every class is there as it is.
* ``fresh``: a new interpreter. The settings and the classes reach it on its stdin; classes of ``__main__`` and of
  notebooks go by value (extra ``cloudpickle``).

The child binds, then reports where, or why not, as one line on a pipe; `launch` returns or raises then, so there
is no window between choosing a port and having it. A second pipe is the parent's life line: its end, however
the parent dies, ends the child within 2 s.

Stopping is one ladder, each step bounded and logged: control frame, SIGTERM, SIGKILL.
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
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import control, errors, trusted
from .config import DEFAULT_TIMEOUT_S, BrokerConfig, generate_server_id
from .proxy import AgentProxy, RpcClient

__all__ = ["RpcAgentServerLauncher", "distribute"]

log = logging.getLogger(__name__)

StartMethod = Literal["auto", "fork", "fresh"]
LAUNCH_TIMEOUT_S = 30.0
TERM_WAIT_S = 2.0
KILL_WAIT_S = 5.0


class RpcAgentServerLauncher:
    """A host: made with its settings, started by `launch`, ended by `shutdown`; or ``with`` it.

    The parameters are those of `BrokerConfig`, checked here (ConfigError). After `launch`, ``host`` and ``port``
    say where it is. Not thread-safe: one thread starts and stops it; any may call what is on it.
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, capacity: int = 32,
        pool_type: Literal["local", "redis"] = "local", redis_url: str = "redis://localhost:6379",
        max_pool_size: int = 8192, max_expire_time: float = 7200, max_timeout_seconds: float = 5,
        local_mode: bool = False, agent_dir: str | os.PathLike[str] | None = None,
        custom_agent_classes: Sequence[type] | None = None, server_id: str | None = None, studio_url: str | None = None,
        *, start_method: StartMethod = "auto", model_config_path: str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> None:  # fmt: skip
        if start_method not in ("auto", "fork", "fresh"):
            raise errors.ConfigError(f"start_method must be 'auto', 'fork' or 'fresh', not {start_method!r}")
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
        self._classes = list(custom_agent_classes or ())
        for cls in self._classes:
            if not isinstance(cls, type):
                raise errors.ConfigError(f"custom_agent_classes holds classes, not {cls!r}")
        self._bound: list[Any] | None = None
        self._child: _Child | None = None
        self._here: Any = None  # the broker, when it runs in this process
        self._ended = threading.Event()
        self._ended.set()

    # ------------------------------------------------------------ where it is

    @property
    def host(self) -> str:
        return self.config.host

    @property
    def port(self) -> int | None:
        """The port that it listens on; before `launch` the one asked for."""
        return self._bound[2] if self._bound else self.config.port

    @property
    def server_id(self) -> str:
        return self.config.server_id

    @property
    def pid(self) -> int | None:
        """The process that runs the host, None when there is none."""
        if self._child is not None:
            return self._child.pid
        return os.getpid() if self._here is not None else None

    @property
    def is_running(self) -> bool:
        return self._here is not None or (self._child is not None and self._child.poll() is None)

    @classmethod
    def generate_server_id(cls, host: str, port: int | None) -> str:
        """A short id, new at each call."""
        return generate_server_id(host, port)

    # ------------------------------------------------------------ start

    def launch(self, in_subprocess: bool = True) -> None:
        """Start the host; returns when it listens. Raises AddressInUse, ConfigError, LoadError, LaunchError ...

        ``in_subprocess`` False: it runs in the calling process, and this returns when it has been stopped.
        """
        if self.is_running:
            raise errors.LaunchError(f"{self.server_id} is running already")
        self._reap()
        if in_subprocess:
            start = _fork if self._method() == "fork" else _spawn
            self._child = start(self.config, self._classes)
            try:
                self._bound = self._child.wait_ready(LAUNCH_TIMEOUT_S)
            except BaseException:
                child, self._child = self._child, None
                child.kill()
                raise
            _running.add(self)
        else:
            self._serve_here()

    def _method(self) -> str:
        if self.start_method == "fork":
            reason = _why_not_fork()
            if reason:
                raise errors.LaunchError(f"start_method='fork' is not safe here: {reason}")
        if self.start_method == "auto":
            return "fresh" if _why_not_fork() else "fork"
        return self.start_method

    def _serve_here(self) -> None:
        from . import hosting  # here, so that a program with its host elsewhere loads no broker

        def started(broker: Any) -> None:
            self._here = broker

        self._ended.clear()
        try:
            hosting.serve(self.config, self._classes, lambda bound: self._set_bound(list(bound)), started=started)
        finally:
            self._here = self._bound = None
            self._ended.set()

    def _set_bound(self, bound: list[Any]) -> None:
        self._bound = bound

    # ------------------------------------------------------------ stop

    def wait_until_terminate(self) -> None:
        """Block until the host has ended."""
        child = self._child
        if child is not None:
            child.wait(None)
        self._ended.wait()

    def shutdown(self, grace_s: float | None = None) -> None:
        """Stop the host: calls may go on for ``grace_s`` seconds (default 10). Idempotent and bounded.

        Called in the process that launched it; from any thread when the host runs in this process.
        """
        grace_s = self.config.grace_s if grace_s is None else grace_s
        if self._here is not None:
            self._here.request_stop(grace_s)
            self._ended.wait(grace_s + TERM_WAIT_S)
            return
        child, self._child = self._child, None
        _running.discard(self)
        bound, self._bound = self._bound, None
        if child is None:
            return
        try:
            self._stop_child(child, bound, grace_s)
        finally:
            child.close()

    def _stop_child(self, child: _Child, bound: list[Any] | None, grace_s: float) -> None:
        if child.poll() is not None:
            return
        if bound is not None:
            try:
                control.send_stop(bound[3], grace_s, timeout=TERM_WAIT_S)
                if child.wait(grace_s + TERM_WAIT_S) is not None:
                    return
                log.warning("%s did not end %.3g s after its grace: SIGTERM", self.server_id, TERM_WAIT_S)
            except errors.ZmqAgentsError as exc:
                if child.poll() is not None:
                    return
                log.warning("%s did not take the stop frame (%s): SIGTERM", self.server_id, exc)
        child.signal(signal.SIGTERM)
        if child.wait(TERM_WAIT_S) is not None:
            return
        log.warning("%s did not end on SIGTERM: SIGKILL", self.server_id)
        child.kill()

    def _reap(self) -> None:
        if self._child is not None:  # it ended by itself
            self._child.close()
            self._child = None

    def __enter__(self) -> RpcAgentServerLauncher:
        self.launch()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = f"pid {self.pid}, port {self.port}" if self.is_running else "not running"
        return f"<RpcAgentServerLauncher {self.server_id}: {state}>"


def _why_not_fork() -> str:
    """Why a fork would not be safe now, "" if it is."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} does not allow it"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the process has {threads} threads (a live ZeroMQ context has some)"
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return "an event loop is running"
    return ""


# ---------------------------------------------------------------- child processes


class _Child:
    """A host process: its pid, the pipe of its report and the life line. ``reap`` gives its exit status or None."""

    def __init__(self, pid: int, ready_r: int, life_w: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._ready_r = ready_r
        self._life_w = life_w
        self._popen = popen
        self._status: int | None = None
        self._lock = threading.Lock()

    def wait_ready(self, timeout: float) -> list[Any]:
        """What `Broker.bind` gave in the child; raises what went wrong there."""
        end = time.monotonic() + timeout
        data = b""
        while not data.endswith(b"\n"):
            if not select.select([self._ready_r], [], [], max(0.0, end - time.monotonic()))[0]:
                raise errors.LaunchError(f"the host process did not report within {timeout:g} s")
            chunk = os.read(self._ready_r, 65_536)
            if not chunk:
                status = self.wait(KILL_WAIT_S)
                raise errors.LaunchError(f"the host process ended before it listened (exit status {status})")
            data += chunk
        message = json.loads(data)
        if "error" in message:
            self.wait(KILL_WAIT_S)
            raise _launch_error(message["error"])
        bound: list[Any] = message["bound"]
        return bound

    def poll(self) -> int | None:
        """The exit status, None while it runs; reaps the process."""
        with self._lock:
            if self._status is not None:
                return self._status
            if self._popen is not None:
                self._status = self._popen.poll()
                return self._status
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # a fork of the launching process has no such child
                self._status = -1
                return self._status
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def wait(self, timeout: float | None) -> int | None:
        """Wait for its end; None after ``timeout`` seconds."""
        if self.poll() is not None:
            return self._status
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old kernel
            return self._wait_by_looking(timeout)
        try:
            select.select([fd], [], [], timeout)
        finally:
            os.close(fd)
        return self.poll()

    def _wait_by_looking(self, timeout: float | None) -> int | None:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and (end is None or time.monotonic() < end):
            time.sleep(0.01)
        return self._status

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once and reap it."""
        if self.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait(KILL_WAIT_S)
        self.close()

    def close(self) -> None:
        """Close the pipes; idempotent."""
        for fd in (self._ready_r, self._life_w):
            if fd in _own_ends:
                _own_ends.discard(fd)
                os.close(fd)


def _launch_error(data: dict[str, Any]) -> Exception:
    error = errors.rebuild(data, from_agent=False)
    if isinstance(error, errors.AgentCallError):  # not one of ours: whatever class or file raised it
        text = f"the host process could not start: {error}"
        return errors.LaunchError(f"{text}\n{data.get('traceback', '')}".rstrip())
    return error


# The parent's ends of the pipes of all its children. A fork of the parent must not hold them: a life line ends
# only when every copy of its end is closed.
_own_ends: set[int] = set()


def _close_inherited_ends() -> None:
    for fd in _own_ends:
        with contextlib.suppress(OSError):
            os.close(fd)
    _own_ends.clear()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_ends)


def _pipes() -> tuple[int, int, int, int]:
    ready_r, ready_w = os.pipe()
    life_r, life_w = os.pipe()
    _own_ends.update((ready_r, life_w))
    return ready_r, ready_w, life_r, life_w


def _fork(config: BrokerConfig, classes: Sequence[type]) -> _Child:
    ready_r, ready_w, life_r, life_w = _pipes()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_forked(config, classes, ready_w, life_r)
    os.close(ready_w)
    os.close(life_r)
    return _Child(pid, ready_r, life_w)


def _run_forked(config: BrokerConfig, classes: Sequence[type], ready_w: int, life_r: int) -> None:
    """In the child. Never returns: the parent's code, its finally blocks and exit handlers belong to the parent."""
    status = 1
    try:
        os.setsid()  # Ctrl-C at the terminal is for the parent, which stops us in order
        signal.set_wakeup_fd(-1)
        from . import hosting

        status = hosting.run_child(lambda: (config, classes), ready_w, life_r)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _spawn(config: BrokerConfig, classes: Sequence[type]) -> _Child:
    payload = pickle.dumps({"config": config, "path": sys.path, "classes": _pickled(classes)})
    ready_r, ready_w, life_r, life_w = _pipes()
    try:
        popen = subprocess.Popen(
            [sys.executable, "-m", "zmqagents.hosting", str(ready_w), str(life_r)],
            stdin=subprocess.PIPE, pass_fds=(ready_w, life_r), start_new_session=True, env=_child_environment(),
        )  # fmt: skip
    except OSError as exc:
        _Child(0, ready_r, life_w).close()
        raise errors.LaunchError(f"cannot start {sys.executable}: {exc}") from exc
    finally:
        os.close(ready_w)
        os.close(life_r)
    child = _Child(popen.pid, ready_r, life_w, popen)
    assert popen.stdin is not None
    with contextlib.suppress(BrokenPipeError), popen.stdin as stdin:  # it ended already: wait_ready tells why
        stdin.write(payload)
    return child


def _pickled(classes: Sequence[type]) -> bytes:
    """The classes by reference where a new interpreter can import them, else by value."""
    if all(_importable(cls) for cls in classes) and not trusted.have_cloudpickle():
        return pickle.dumps(list(classes))
    return trusted.dumps(list(classes))


def _importable(cls: type) -> bool:
    return cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def _child_environment() -> dict[str, str]:
    """So that the child finds this very package, however the parent found it."""
    place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


_running: weakref.WeakSet[RpcAgentServerLauncher] = weakref.WeakSet()


@atexit.register
def _shut_down_all() -> None:
    """What this process launched and did not stop ends with it, in order rather than by its life line."""
    for launcher in list(_running):
        with contextlib.suppress(Exception):
            launcher.shutdown(grace_s=1.0)


# ---------------------------------------------------------------- to_dist


_private_lock = threading.Lock()
_private: tuple[int, RpcAgentServerLauncher, RpcClient] | None = None


def private_client() -> RpcClient:
    """A client on the one private host of this process, which starts now if it has not, and ends with the process."""
    global _private
    with _private_lock:
        if _private is not None and _private[0] == os.getpid() and _private[1].is_running:
            return _private[2]
        launcher = RpcAgentServerLauncher(private=True)
        launcher.launch()
        assert launcher._bound is not None
        from .client import Target, connect

        client = RpcClient(link=connect(Target("", None, ipc=launcher._bound[3])))
        _private = (os.getpid(), launcher, client)
        return client


def stop_private_host() -> None:
    """End the private host of this process, if there is one; the next bare ``to_dist()`` starts another."""
    global _private
    with _private_lock:
        private, _private = _private, None
    if private is not None and private[0] == os.getpid():
        private[2].close()
        private[1].shutdown()


def distribute(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], agent_id: str | None, where: Mapping[str, Any]
) -> AgentProxy:
    """What ``to_dist`` does: make the agent on the host that ``where`` names, or on the private one."""
    unknown = sorted(set(where) - {"host", "port", "transport", "timeout"})
    if unknown:
        raise errors.ConfigError(f"to_dist does not know {', '.join(unknown)}; it takes host, port, transport, timeout")
    if where.get("port") is None:
        if where.get("host") is not None:
            raise errors.ConfigError("to_dist with a host needs its port")
        return private_client().create_agent(cls, *args, agent_id=agent_id, **kwargs)
    host, port = where.get("host") or "localhost", where["port"]
    client = RpcClient(host, port, transport=where.get("transport"), timeout=where.get("timeout", DEFAULT_TIMEOUT_S))
    return client.create_agent(cls, *args, agent_id=agent_id, **kwargs)
