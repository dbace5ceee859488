"""Start and stop a host process: `RpcAgentServerLauncher`.

``start_method`` says how the child comes to be: by ``fork`` where that is safe, else as a ``fresh`` interpreter, for
which classes of ``__main__`` and of notebooks need cloudpickle. `children` tells of both, of its report and of its
life line. `launch` returns or raises with the report: there is no window between choosing a port and having it.

With ``restart=True`` that child is a `supervisor`, whose own child is the host, and which starts it again when it
crashes: on the same port, under the same server id, with another epoch. Its agents are gone then.

A stop takes up to three steps, each logged: a request over the control socket, SIGTERM, SIGKILL. All of it takes the
grace and 2 s at most.

A host lives until it is stopped or the process that launched it ends, whether or not anything refers to its
launcher: what runs on it must not depend on when Python collects an object.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from .. import discovery, errors
from ..agents.factories.factory import Factory, as_maker, is_factory, maker_name
from ..config import END_WAIT_S, BrokerConfig, check_threads, generate_server_id, replaced_by_gevent
from ..process import children
from ..tracing import switch
from . import stop

__all__ = ["RpcAgentServerLauncher"]

log = logging.getLogger(__name__)

StartMethod = Literal["auto", "fork", "fresh"]
Declared = type | str | Callable[..., Any]  # what makes an agent, or its name
Bound = list[Any]  # `broker.Bound` as it comes out of JSON
LAUNCH_TIMEOUT_S = 30.0
CLOSED_S = 0.25  # a host that ends by itself closes its sockets some 10 ms before its process ends
CONTROL_TIMEOUT_S = 2.0  # for the host to agree that it will stop
TERM_WAIT_S = 2.0
LAST_RUN = b"."  # said to a supervisor: the host is not to be started again
EXIT_GRACE_S = 1.0  # for hosts that are still there when this process ends


class RpcAgentServerLauncher:
    """A host: made with its settings, started by `launch`, ended by `shutdown`; or ``with`` it.

    The parameters are those of `BrokerConfig`, checked here (ConfigError). After `launch`, ``host`` and ``port``
    say where it is. ``start_method``: see the module. ``launch_timeout_s``: how long it may take to listen;
    importing the agents' files counts. ``restart``: see the module. ``agents`` are made at each start, before the first
    client is served: by their ids a class, a function that gives the agent's object, or the name of one, or a pair of
    that and the keyword arguments of its ``__init__``.
    Any thread may use it.
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, capacity: int = 32,
        pool_type: Literal["local", "redis"] = "local", redis_url: str = "redis://localhost:6379",
        max_pool_size: int = 8192, max_expire_time: float = 7200, max_timeout_seconds: float = 5,
        local_mode: bool = False, agent_dir: str | os.PathLike[str] | None = None,
        custom_agent_classes: Sequence[type | Callable[..., Any]] | None = None,
        server_id: str | None = None, studio_url: str | None = None,
        *, start_method: StartMethod = "auto", launch_timeout_s: float = LAUNCH_TIMEOUT_S, restart: bool = False,
        model_config_path: str | os.PathLike[str] | None = None,
        agents: Mapping[str, Declared | tuple[Declared, dict[str, Any]]] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        if start_method not in ("auto", "fork", "fresh"):
            raise errors.ConfigError(f"start_method must be 'auto', 'fork' or 'fresh', not {start_method!r}")
        if not isinstance(launch_timeout_s, (int, float)) or not 0 < launch_timeout_s < 1e6:
            raise errors.ConfigError(f"launch_timeout_s must be a number of seconds, not {launch_timeout_s!r}")
        if not isinstance(restart, bool):
            raise errors.ConfigError(f"restart must be True or False, not {restart!r}")
        if agents is not None and not isinstance(agents, Mapping):
            raise errors.ConfigError(f"agents must be a dictionary of agent ids to classes, not {agents!r}")
        declared = {agent_id: _declared(what) for agent_id, what in (agents or {}).items()}
        try:
            self.config = BrokerConfig(
                host=host, port=port, capacity=capacity, pool_type=pool_type, redis_url=redis_url,
                max_pool_size=max_pool_size, max_expire_time=max_expire_time, max_timeout_seconds=max_timeout_seconds,
                local_mode=local_mode, agent_dir=None if agent_dir is None else os.fspath(agent_dir),
                server_id=server_id or "", studio_url=studio_url,
                model_config_path=None if model_config_path is None else os.fspath(model_config_path),
                agents={agent_id: (_known_as(maker), kwargs) for agent_id, (maker, kwargs) in declared.items()}, **more,
            )  # fmt: skip
        except TypeError as exc:
            known = BrokerConfig.__dataclass_fields__
            near = "".join(errors.did_you_mean(name, known) for name in more if name not in known)
            text = str(exc).replace("BrokerConfig.__init__()", "RpcAgentServerLauncher")
            raise errors.ConfigError(text + near) from None
        self.start_method = start_method
        self.launch_timeout_s = launch_timeout_s
        self.restart = restart
        self._classes = _makers(custom_agent_classes or (), [maker for maker, _ in declared.values()])
        self._lock = threading.Lock()  # one thread starts or stops a child
        self._bound: Bound | None = None
        self._child: children.Child | None = None
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
    def ipc(self) -> str | None:
        """The path of its Unix socket, None before `launch`."""
        return None if self._bound is None else self._bound[3]

    @property
    def server_id(self) -> str:
        """The host's name among all hosts: the one given, or one made of host and port."""
        return self.config.server_id

    @property
    def pid(self) -> int | None:
        """The process that runs the host, None when there is none: also while it is being started again."""
        child, bound = self._child, self._bound
        if child is not None and bound is not None and child.poll() is None:
            return _pid_at(bound[3]) if self.restart else child.pid
        return os.getpid() if self._here is not None else None

    @property
    def is_running(self) -> bool:
        """True from the moment at which the host listens until it has ended and is not started again."""
        child, here = self._child, self._here
        return (here is not None and here.broker is not None) or (child is not None and child.poll() is None)

    @classmethod
    def generate_server_id(cls, host: str, port: int | None) -> str:
        """A short id, new at each call."""
        return generate_server_id(host, port)

    # ------------------------------------------------------------ start

    def launch(self, in_subprocess: bool = True) -> None:
        """Start the host; returns when it listens.

        ``in_subprocess`` False: the host runs in the calling process, and this returns when it has been stopped, by
        `shutdown` in another thread, a client, or a signal (SIGTERM, SIGINT) if this is the main thread.
        Raises AddressInUse for a port or socket path that is taken, ConfigError for a setting that cannot be used,
        LoadError for agents' files, and LaunchError when the process cannot be started, cannot reach Redis, has not
        listened in ``launch_timeout_s`` seconds, or runs already.
        """
        check_threads()
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
            if self.restart:
                raise errors.LaunchError("restart=True needs a process of its own for the host: in_subprocess=True")
            if self.config.hang_limit_s is not None:
                raise errors.LaunchError("hang_limit_s needs a process of its own for the host: in_subprocess=True")
            if replaced := replaced_by_gevent(*children.MODULES_OF_A_HOST):
                text = f"gevent has patched {', '.join(replaced)}: the host needs a process of its own"
                raise errors.LaunchError(f"{text} (in_subprocess=True)")
            here = self._here = _Here()
        self._serve(here)

    def _launch_child(self) -> None:
        child = self._begin()
        try:
            ready = child.wait_ready(self.launch_timeout_s)
            self._child, self._bound = child, ready["bound"]
            _running.add(self)
        except BaseException:
            child.kill()
            child.close()
            discovery.sweep()  # it may have listened already
            raise
        for failure in ready["left_out"]:
            log.warning("%s: agent file left out: %s", self.server_id, failure)

    def _begin(self) -> children.Child:
        config, classes, limit_s = self.config, self._classes, self.launch_timeout_s
        if switch.active is not None and not config.otel:
            config = config.replace(otel=True)
        if self._method() == "fresh":
            if self.restart:
                return children.spawn("zmqagents.server.supervisor", config, classes, str(limit_s))
            return children.spawn("zmqagents.server.child_main", config, classes)
        if self.restart:
            from . import supervisor

            return children.fork(
                lambda ready_w, life_r: supervisor.run_forked(config, classes, limit_s, ready_w, life_r)
            )
        from . import child_main  # in the parent, once, and not in every child

        return children.fork(lambda ready_w, life_r: child_main.run_forked(config, classes, ready_w, life_r))

    def _method(self) -> str:
        if self.start_method == "fresh":
            return "fresh"
        reason = children.why_not_fork()
        if reason and self.start_method == "fork":
            raise errors.LaunchError(f"start_method='fork' is not safe here: {reason}")
        return "fresh" if reason else "fork"

    def _serve(self, here: _Here) -> None:
        try:
            from . import serve  # here, so that a program with its host elsewhere loads no broker

            _running.add(self)
            serve.serve(self.config, self._classes, lambda bound: None, started=self._started)
        finally:
            _running.discard(self)
            self._bound = self._here = None
            here.ended.set()

    def _started(self, broker: Any) -> None:
        here = self._here
        assert here is not None
        self._bound = list(broker.bound)
        here.broker = broker
        if here.grace_s is not None:  # it was asked to stop before its router thread ran
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

    def _stop_child(self, child: children.Child, bound: Bound, grace_s: float) -> None:
        if self.restart:
            child.say(LAST_RUN)
        if child.poll() is not None:
            return
        end = time.monotonic() + grace_s + END_WAIT_S
        try:
            if self.restart and _pid_at(bound[3]) is None:
                raise errors.HostUnreachable("the host is being started again")
            stop.send_stop(bound[3], grace_s, timeout=min(CONTROL_TIMEOUT_S, (grace_s + END_WAIT_S) / 2))
            if child.wait(end - time.monotonic()) is None:
                log.warning("%s did not end %g s after its grace: SIGKILL", self.server_id, END_WAIT_S)
            return
        except errors.ZmqAgentsError as exc:
            if child.wait(CLOSED_S) is not None:
                return
            log.warning("%s did not take the request to stop (%s): SIGTERM", self.server_id, exc)
        child.signal(signal.SIGTERM)
        if child.wait(min(TERM_WAIT_S, end - time.monotonic())) is None:
            log.warning("%s did not end on SIGTERM: SIGKILL", self.server_id)

    def forget_lock(self) -> None:
        """In a forked child: a thread that is not here may hold the locks, so make new ones."""
        self._lock = threading.Lock()
        if self._child is not None:
            self._child.forget_lock()

    def reap(self) -> None:
        """Reap a host that has ended by itself, so that it does not stay a zombie. Does not wait for the lock."""
        child = self._child
        if child is not None and child.poll() is not None and self._lock.acquire(blocking=False):
            try:
                if self._child is child:
                    self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        """Forget a child that has ended. Called with the lock."""
        child, self._child, self._bound = self._child, None, None
        _running.discard(self)
        if child is not None:
            child.close()
            if child.poll() != 0:  # it could not clean up after itself
                discovery.sweep()

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


_running: set[RpcAgentServerLauncher] = set()


def _declared(what: Any) -> Any:
    """An entry of ``agents`` as a pair: what makes the agent, and keyword arguments. `BrokerConfig` checks the rest."""
    maker, kwargs = what if isinstance(what, tuple) and len(what) == 2 else (what, {})
    return as_maker(maker) if isinstance(maker, type) or is_factory(maker) else maker, kwargs


def _known_as(maker: Any) -> Any:
    return maker_name(maker) if isinstance(maker, (type, Factory)) else maker


def _makers(classes: Iterable[Any], declared: Iterable[Any]) -> list[type | Factory]:
    """What the host is to know, each once."""
    found: dict[str, type | Factory] = {}
    if isinstance(classes, type) or not isinstance(classes, Iterable):
        raise errors.ConfigError(f"custom_agent_classes is a list of classes and functions, not {classes!r}")
    for maker in classes:
        if not (isinstance(maker, type) or is_factory(maker)):
            raise errors.ConfigError(f"custom_agent_classes holds classes and functions, not {maker!r}")
        found.setdefault(maker_name(as_maker(maker)), as_maker(maker))
    for maker in declared:
        if isinstance(maker, (type, Factory)):
            found.setdefault(maker_name(maker), maker)
    return list(found.values())


def _pid_at(ipc: str) -> int | None:
    """The process that listens at a socket path, as its connection file says."""
    return next((record.pid for record in discovery.list_hosts() if record.ipc == ipc), None)


def _let_go_after_fork() -> None:
    for launcher in list(_running):
        launcher.forget_lock()
    _running.clear()


os.register_at_fork(after_in_child=_let_go_after_fork)


def _let_go_of_the_dead() -> None:
    """Reap the hosts that have ended by themselves, also those whose launchers no variable holds any more."""
    for launcher in list(_running):
        launcher.reap()


@atexit.register
def _shut_down_all() -> None:
    """What this process launched and did not stop ends with it, in order rather than by its life line."""
    for launcher in list(_running):
        with contextlib.suppress(Exception):
            launcher.shutdown(EXIT_GRACE_S)
