"""A host process from inside: from a `BrokerConfig` to a broker that answers, and to its end.

The same `serve` runs in a forked child, in a fresh interpreter and in the calling process, so a setting cannot
be lost in one of them. The main thread only waits (for a signal, or for the end); the router has its own thread.

A child process (`run_child`) watches its parent from its first moment on, while agent files are still being
imported, and ends by ``os._exit``: an agent's thread may be stuck for ever, and nothing waits for it. Exit handlers
(`atexit`) therefore do not run in a child.

    exit status   0 stopped as asked    75 the parent process is gone    1 it failed
                  -SIGALRM: it was told to stop, or its parent process is gone, and it could not end in order

SIGUSR2 makes a child, and ``as_server start``, write the stack of every thread to stderr and go on; so does a crash
in C code, which ends it. Both need no working interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import codec, discovery, errors
from ..adapters import adapt
from ..agents import loader
from ..agents.factories.factory import Maker
from ..agents.state import Keeper
from ..broker.broker import Broker
from ..broker.listening import Bound
from ..checks import CLUSTER
from ..codec import AgentRef, TaskRef, pickling
from ..config import BrokerConfig, Parent
from ..execution.classes import ClassTable
from ..models.configs import ModelConfigs
from ..process import descriptors, forks, memory, signals
from ..process.collecting import Collector
from ..process.end_timer import EndTimer
from ..tracing import switch
from ..version import __version__
from ..wire.link import Link, Sink, Waiter, adopt, adopt_as, disown, rebuild_error
from ..wire.messages import Op
from .systemd import Notifier

if TYPE_CHECKING:
    from ..process import children
    from .studio import Registration

__all__ = ["build", "serve"]

host_log = logging.getLogger("zmqagents.host")

ROUTER_LIMIT_S = 0.3  # the first router thread has handed over to another one, perhaps, and is stuck
CHILD_GRACE_S = 0.3  # the host's own grace is over when it ends its children
LOOK_EVERY_S = 10.0  # how often the descriptors are counted, and the host's files looked after
MADE_EVERY_S = 0.005  # how often `_see_it_made` looks whether a declared agent is made
TELL_EVERY_S = 0.5  # how often a service manager is told that the end takes longer
SLOW_STOP_S = 0.3  # a stop that takes longer is explained
SIGNAL_S = 0.2  # how late a signal may be heard that another thread got, or that came just before a wait

Ready = Callable[[Bound], None]


def build(
    config: BrokerConfig, classes: Sequence[Maker], *,
    failures: list[errors.LoadError] | None = None, keeper: Keeper | None = None,
) -> Broker:  # fmt: skip
    """A broker with its classes and model configs, not yet bound. Raises LoadError, ConfigError, LaunchError.

    ``failures`` gets the errors of agent files that were left out; None: they are logged. ``keeper`` takes the states
    of agents; None: nobody asks for them.
    """
    table = ClassTable(classes, adapt)
    if config.agent_dir is not None:
        for cls in loader.load_agents_from_dir(config.agent_dir, failures=failures):
            table.add(cls)
    models = ModelConfigs()
    parent = None
    if config.cluster:
        from ..members.peers.keeper import ClusterKeeper

        keeper = ClusterKeeper()
    if config.parent is not None:
        from ..members.upward import ParentConnection, ParentKeeper  # here: most hosts are no child

        parent = ParentConnection(config.parent)
        adopt(parent)
        if config.parent.cluster:
            adopt_as(f"{CLUSTER}{config.parent.cluster}", parent)
        keeper = keeper or ParentKeeper()
    broker: Broker
    if config.model_config_path is not None:
        from ..models.checking import load_model_configs_file  # here: most hosts have none

        models.add(load_model_configs_file(config.model_config_path))
    try:
        broker = Broker(
            config, table, models, bind_reference=_bind_reference, fetch_far=_fetch_far,
            own_client=lambda: _own_client(parent or broker.link),
            pickler=pickling.dumps if config.takes_pickles else None,
            unpickler=pickling.loads if config.takes_pickles else None,
            hatch=None if parent is not None else functools.partial(_hatch, config, classes), parent=parent,
            keeper=keeper,
        )  # fmt: skip
    except errors.StoreUnavailable as exc:
        remedy = "say where it is by --redis-url" if config.cluster else "take --pool-type local"
        raise errors.LaunchError(
            f"the store for results cannot be reached: {exc} Start it there, or {remedy}"
        ) from None
    return broker


# Agents' code calls through the client, which costs 8 ms and 1 MiB: it is loaded when the first of them needs it.


def _bind_reference(ref: AgentRef | TaskRef, *more: Any) -> Any:
    from ..client import proxy

    return proxy.bind_reference(ref, *more)


def _fetch_far(ref: TaskRef, sink: Sink) -> None:
    from ..client import references

    references.fetch_far(ref, sink)


def _own_client(link: Link) -> Any:
    from ..client import rpc

    return rpc.RpcClient(link=link)


def _hatch(
    config: BrokerConfig, classes: Sequence[Maker], parent: Parent, name: str, stderr: int,
    env: Mapping[str, str] | None,
) -> children.Child:  # fmt: skip
    """Start a process for agents of this host: a host that only this one can reach, with the same classes."""
    from ..process import children  # here: with `tempfile` and `subprocess` 3 ms that most hosts need not pay

    config = config.replace(
        parent=parent, private=True, server_id=name, agents={}, isolation="thread", pool_type="local", cluster="",
        labels={}, studio_url=None, file_roots=(), grace_s=CHILD_GRACE_S, hang_limit_s=None, insecure=False, port=None,
        logs=config.logs and config.logs._replace(child=name), otel=switch.active is not None,
    )  # fmt: skip
    return children.spawn("zmqagents.server.child_main", config, classes, stderr=stderr, env=env)


def serve(
    config: BrokerConfig, classes: Sequence[Maker], ready: Ready, *,
    started: Callable[[Broker], None] | None = None, failures: list[errors.LoadError] | None = None,
    notifier: Notifier | None = None, own_process: bool = False, waits: Callable[[], None] | None = None,
) -> int:  # fmt: skip
    """Run a host in this process until it is stopped; the exit status, 0.

    ``started`` gets the broker as soon as it can be asked to stop, then ``ready`` is called once: it listens.
    Called in the main thread, it handles signals meanwhile: SIGTERM and SIGINT drain, the second one ends at once. A
    process of another host's agents is told to stop by its life line, and these signals do nothing there.
    Raises what `build` raises, AddressInUse, and whatever made the router thread fail. When it returns, every
    socket and file is closed; a thread that is stuck in an agent's code is left behind. ``notifier`` is told how it is.
    ``waits`` is called once where a stop waits for calls.
    ``own_process``: this process is the host's alone, so it may be ended by force: see `end_timer`.
    """
    descriptors.raise_limit()
    if config.parent is None:  # else it has looked, and a start is to take no longer where many children live
        discovery.sweep()
    broker = build(config, classes, failures=failures)
    timer = EndTimer(own_process, config.hang_limit_s)
    with _signals(broker, timer):  # before there is anything that a signal would leave behind
        try:
            bound = broker.bind()
        except BaseException:
            broker.abandon()
            raise
        _tell_of_start(config, bound)
        if started is not None:
            started(broker)
        with (
            _switch_interval(config.switch_interval_s), descriptors.not_for_forks(bound.port, bound.ipc),
            forks.ended_with_us() if own_process else contextlib.nullcontext(), Collector() as collector,
        ):  # fmt: skip
            _run(broker, bound, ready, notifier or Notifier(), timer, collector, waits)
    host_log.info("%s has ended", config.server_id)
    return 0


def _tell_of_start(config: BrokerConfig, bound: Bound) -> None:
    limits = ("capacity", "max_agents", "max_calls", "max_mailbox", "max_message_bytes", "max_queued_bytes",
              "max_pool_bytes", "pool_type", "isolation", "grace_s")  # fmt: skip
    where = bound.address if bound.port is not None else "no port"
    shown = ", ".join(f"{name} {getattr(config, name)}" for name in limits)
    host_log.info(
        "%s begins: zmqagents %s, process %d, at %s and %s; %s", config.server_id, __version__, os.getpid(), where,
        bound.ipc, shown,
    )  # fmt: skip


def _run(
    broker: Broker, bound: Bound, ready: Ready, notifier: Notifier, timer: EndTimer, collector: Collector,
    waits: Callable[[], None] | None,
) -> None:  # fmt: skip
    registration = None
    adopt(broker.link)
    if broker.config.cluster:
        adopt_as(f"{CLUSTER}{broker.config.cluster}", broker.link)
    # A daemon, for an agent's code may be stuck in it.
    router = threading.Thread(target=broker.run, name="zmqagents-router", daemon=True)
    try:
        try:
            declared = _declare(broker)
        finally:
            _begin(broker, router)  # also where it only has to close
        if all(_see_it_made(broker, agent_id, made, timer) for agent_id, made in declared.items()):
            registration = _register(broker.config, bound)
            ready(bound)
        _attend(broker, bound, notifier, timer, collector, waits)
    finally:
        if not broker.finished.is_set():  # else what is left of the process has the time of the stop that it was
            broker.request_stop(0.0)
        _hear(broker, timer, 0.0)
        if registration is not None:
            registration.stop(1.0)
        broker.finished.wait()
        timer.ended()
        if router.ident is not None:
            router.join(ROUTER_LIMIT_S)
        disown(broker.link)
    if broker.crash is not None:
        raise broker.crash


def _begin(broker: Broker, router: threading.Thread) -> None:
    try:
        router.start()
    except RuntimeError as exc:  # no more threads
        broker.request_stop(0.0)
        broker.run()  # in this one, for it only has to close
        raise errors.LaunchError(f"the host cannot start its router thread: {exc}") from exc


def _register(config: BrokerConfig, bound: Bound) -> Registration | None:
    if not config.studio_url or bound.port is None:
        return None
    from .studio import Registration  # here, so that no start without a studio waits for it

    return Registration(config.studio_url, server_id=bound.server_id, host=bound.host, port=bound.port)


def _declare(broker: Broker) -> dict[str, Waiter]:
    """Ask for the agents of the settings before the router thread reads its first message.

    So no call can come too early: a client that sends an interrupted call again after a crash waits until the agents
    are made.
    """
    made: dict[str, Waiter] = {}
    if not broker.config.agents:
        return made
    from ..client import proxy, rpc

    for agent_id, (class_name, kwargs) in broker.config.agents.items():
        _, options = rpc.creation(class_name, agent_id)
        body = proxy.request_body(broker.link, f"agent {agent_id}", (), kwargs)
        made[agent_id] = Waiter()
        broker.link.submit("", Op.CREATE, body, made[agent_id], options=options)
    return made


def _see_it_made(broker: Broker, agent_id: str, made: Waiter, timer: EndTimer) -> bool:
    """Wait until a declared agent is made. False: the host was stopped meanwhile.

    The launcher gives this process a limited time.
    """
    while not made.done:
        _hear(broker, timer, MADE_EVERY_S)
    reply = made.take()
    if reply.code:
        error = rebuild_error(reply)
        if isinstance(error, errors.HostStopping) and broker.draining:
            return False
        if isinstance(error, (errors.UnknownClass, errors.ConfigError)):
            raise errors.ConfigError(f"agents: {agent_id} cannot be made: {error}") from error
        text = error.with_name() if isinstance(error, errors.AgentCallError) else error
        raise errors.LaunchError(f"agent {agent_id} could not be made: {text}") from error
    return True


def _hear(broker: Broker, timer: EndTimer, timeout_s: float) -> None:
    """Wait for a word of the host's, and take all that there are: a stop sets the timer of its end."""
    with contextlib.suppress(queue.Empty):
        grace_s = broker.told.get(timeout=timeout_s) if timeout_s else broker.told.get_nowait()
        while True:
            if grace_s is not None:
                timer.arm(grace_s)
            grace_s = broker.told.get_nowait()


def _attend(
    broker: Broker, bound: Bound, notifier: Notifier, timer: EndTimer, collector: Collector,
    waits: Callable[[], None] | None,
) -> None:  # fmt: skip
    """Wait for the end of the host; meanwhile look after descriptors, memory and files, and tell the service manager.

    It is alive as long as the router thread answers: what another thread does says nothing of the host.

    A signal is handled in this thread, but it need not wake it: the kernel may give it to another thread, and it may
    come between this thread's last step and its wait. So no wait is long.
    """
    where = f"listening on port {bound.port} as {bound.server_id}"
    notifier.ready(where)
    codec.warm_up()  # later it would take 10 ms of a method's time, or find no descriptor free to read a module
    gauge, trimmer, alive = descriptors.Gauge(bound.server_id), memory.Trimmer(), threading.Event()
    limits_s = [limit_s for limit_s in (notifier.watchdog_s, broker.config.hang_limit_s) if limit_s]
    every_s = min(TELL_EVERY_S if notifier else LOOK_EVERY_S, *(limit_s / 4 for limit_s in limits_s), LOOK_EVERY_S)
    next_look = time.monotonic()
    told = False
    alive.set()
    timer.beat()
    while not broker.finished.is_set():
        end = time.monotonic() + every_s
        while not broker.finished.is_set() and (left_s := end - time.monotonic()) > 0:
            _hear(broker, timer, min(left_s, SIGNAL_S))
            broker.settle_counts()
            if broker.draining and waits is not None and not broker.finished.wait(SLOW_STOP_S):
                waits()
                waits = None
        if time.monotonic() >= next_look:
            gauge.look()
            collector.look()
            trimmer.look()
            broker.renew_files()
            next_look = time.monotonic() + LOOK_EVERY_S
        if notifier and broker.draining and not told:
            told = True
            notifier.stopping("stopping: running and queued calls may end")
        if limits_s and alive.is_set():
            timer.beat()
            if notifier.watchdog_s is not None:
                notifier.alive()
            alive.clear()
            broker.beat(alive)
    if not told:
        notifier.stopping("stopped")


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


def _ignore(number: int, frame: Any) -> None:
    """Not SIG_IGN, which the programs that an agent starts would inherit."""


@contextlib.contextmanager
def _signals(broker: Broker, timer: EndTimer) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if broker.config.parent is not None:
        # A service manager may signal all processes at once: the host then needs this one until its calls are over.
        with signals.handled(_ignore, signal.SIGTERM, signal.SIGINT):
            yield
        return
    seen: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        seen.append(number)
        broker.request_stop(None if len(seen) == 1 else 0.0)

    with signals.handled(on_signal, signal.SIGTERM, signal.SIGINT), timer.watching_signals(broker.config.grace_s):
        yield
