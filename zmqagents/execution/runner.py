"""The agents of one host, and running one call on one of them.

`AgentHost.run` turns a `Ticket` into a `Reply`, in whichever worker thread it is called; `run_on_loop`
does the same for ``async def`` methods on the event loop. Bodies are decoded and encoded here and nowhere
else on the host. Nothing that an agent does, raises or returns gets out as an exception: it becomes an
error reply, so that every started call is answered exactly once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import codec, errors
from ..agents.base import AgentBase, made_with
from ..agents.context import HostServices, RunningCall
from ..agents.factories.factory import Factory
from ..agents.spec import ATTRIBUTE, ClassSpec, annotated, signature_of, without_self
from ..codec import NATIVE_TYPES, TAG, decode_call, encode_plain, lone_arguments, lone_forms, new_tuple
from ..config import BrokerConfig
from ..scheduler.dispatcher import AgentRecord, Ticket, error_reply
from ..scheduler.records import END
from ..wire.messages import Code, Op, Reply
from .classes import ClassTable
from .event_loop import EventLoop
from .file_roots import CHUNK_BYTES, FileRoots
from .interrupting import CallInterrupted, Region
from .lifecycle.lives import Lives
from .lifecycle.opening import Opening
from .turns import turn_of

if TYPE_CHECKING:
    from ..tracing.hosts import HostTraces

__all__ = ["AgentHost", "NOTHING", "PARKED"]

Ref = codec.AgentRef | codec.TaskRef
_END = object()
_NO_ERROR = int(Code.NONE)  # a member of an enum is slower to compare and to pack
NOTHING = Reply(Code.NONE, (codec.pack(None),))  # the reply of a method that gives None
# None yet: the generator waits for its reader, and `AgentHost.resume` goes on with it; or `AgentHost.run_rest` does.
PARKED = Reply(Code.NONE, ())
_LATER = b"later"  # instead of a description: `PARKED`


class _Refused(Exception):
    """An error of the host about a call, to be told apart from the same error raised by the agent's code."""

    def __init__(self, error: errors.ZmqAgentsError) -> None:
        super().__init__(error)
        self.error = error


class AgentHost:
    """Runs calls. ``bind`` makes a reference from the wire a live proxy or result; it may block. ``loop`` runs the
    hooks of agents, and the coroutines that plain methods return. ``traces``: None where calls are not traced.
    """

    def __init__(
        self, config: BrokerConfig, classes: ClassTable, services: HostServices, bind: Callable[..., Any],
        loop: EventLoop, *, unpickler: Callable[[bytes], Any] | None = None,
        pickler: Callable[[Any], bytes] | None = None, traces: HostTraces | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self._traces = traces
        self.classes = classes
        self.services = services
        self._files = FileRoots(config.file_roots, chunk_bytes=min(CHUNK_BYTES, config.max_message_bytes // 2 + 1))
        self._max_structured = config.structured_limit
        # Of a payload. A longer one may take more memory than it is allowed to, or time: see `turns`.
        self.short_bytes = min(codec.SHORT_BYTES, config.structured_limit // codec.HARMLESS)
        self._bind = bind
        self._unpickler = unpickler
        self._pickler = pickler
        self._regions: dict[Ticket, Region] = {}  # of calls whose code may be interrupted, while it runs
        self._packed_methods: dict[str, tuple[ClassSpec, bytes]] = {}
        self._scopes: dict[tuple[str, str], tuple[ClassSpec, codec.Scope]] = {}  # by class and method
        self._await_value = loop.await_value
        self._lives = Lives(loop, services, config.end_hooks_s)
        self._own_scope = codec.Scope(trusted=config.types, plain=config.plain_types)

    # ------------------------------------------------------------ running

    def run(self, ticket: Ticket, context: RunningCall) -> Reply:
        """Run ``ticket`` in the calling thread, in a new `contextvars.Context`. Never raises.

        It runs to its end, or until it is a stream whose reader takes nothing: `PARKED`.
        """
        context.begin()
        if self._traces is not None:
            self._traces.begin(ticket)
        method = ticket.method
        try:
            if method is not None and method.on_loop:  # its arguments are long, or results among them are
                context.put_off(functools.partial(self._go_on_loop, ticket, context, *self._arguments(ticket)))
                return PARKED
            value = self._execute(ticket)
            if method is not None and method.returns == "stream":
                return self._run_stream(ticket, context, value)
            kind = type(value)
            if kind in NATIVE_TYPES or kind in lone_forms:  # what most methods give: neither of these
                pass
            elif hasattr(value, "__zmqagents_ref__") and hasattr(value, "task_id"):
                value = value.result()  # `return other.reply(x)`: the caller means its value
            elif inspect.isawaitable(value):  # a plain method that gives a coroutine of some framework
                with self.services.outside(context):
                    value = self._await_value(value)
            return self._encode(ticket, value)
        except BaseException as exc:  # an agent may raise anything, SystemExit included
            return self.failure(ticket, exc)
        finally:
            context.end()

    def resume(self, ticket: Ticket, context: RunningCall) -> Reply:
        """Go on with a stream that was `PARKED`, in any thread, in the `contextvars.Context` of its first one."""
        context.begin_again()
        try:
            return self._send_items(ticket, context, context.sender.take_up())
        except BaseException as exc:
            return self.failure(ticket, exc)
        finally:
            context.end()

    async def run_rest(self, ticket: Ticket, context: RunningCall) -> Reply:
        """Go on with a call that was `PARKED`: the rest of it is a coroutine that gives its reply. Never raises."""
        context.begin_again()
        if self._traces is not None:
            self._traces.begin(ticket)
        try:
            reply: Reply = await context.take_rest()()
            return reply
        except BaseException as exc:
            return self.failure(ticket, exc)
        finally:
            context.end()

    async def run_on_loop(self, ticket: Ticket, context: RunningCall) -> Reply:
        """Run an ``async def`` ticket on the event loop, as a task that was made in a new `contextvars.Context`.

        Never raises, but for the loop's own end.
        """
        context.begin()
        if self._traces is not None:
            self._traces.begin(ticket)
        try:
            if context.deadline is not None and time.monotonic() >= context.deadline:
                return self.too_late(ticket)
            return await self._await(ticket, context, self._execute(ticket))
        except BaseException as exc:  # CancelledError among them
            return self.failure(ticket, exc)
        finally:
            context.end()

    async def _await(self, ticket: Ticket, context: RunningCall, value: Any) -> Reply:
        """Run what a coroutine method has given."""
        if ticket.method is not None and ticket.method.returns == "stream":
            return await self._run_stream_on_loop(ticket, context, value)
        value = await value
        if hasattr(value, "__zmqagents_ref__") and hasattr(value, "task_id"):
            value = await value
        return self._encode(ticket, value)

    async def _go_on_loop(
        self, ticket: Ticket, context: RunningCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Reply:
        """Run a coroutine method whose arguments a thread has read."""
        _check(context)
        return await self._await(ticket, context, getattr(self._object_of(ticket), ticket.name)(*args, **kwargs))

    def _run_stream(self, ticket: Ticket, context: RunningCall, value: Any) -> Reply:
        """Send the items one by one, each when the reader has room; a caller that asked for no stream gets a list."""
        if context.sender is None:
            return self._encode(ticket, list(value))
        return self._send_items(ticket, context, iter(value))

    def _send_items(self, ticket: Ticket, context: RunningCall, items: Iterator[Any]) -> Reply:
        parked = False
        try:
            while context.sender.acquire():
                item = next(items, _END)
                if item is _END:
                    return NOTHING
                context.sender.send(self._encoded(ticket, item))
            parked = True
            context.sender.park(items)
            context.pause()
            return PARKED
        finally:
            close = None if parked else getattr(items, "close", None)  # a generator's finally blocks run here
            if close is not None:
                close()

    async def _run_stream_on_loop(self, ticket: Ticket, context: RunningCall, value: Any) -> Reply:
        if not hasattr(value, "__aiter__"):  # an async def under @stream_func, which gives the iterable
            value = await value
        if not hasattr(value, "__aiter__"):
            value = _async_items(value)
        if context.sender is None:
            return self._encode(ticket, [item async for item in value])
        items = aiter(value)
        try:
            while True:
                await context.sender.acquire_on_loop()
                item = await anext(items, _END)
                if item is _END:
                    return NOTHING
                context.sender.send(self._encoded(ticket, item))
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _execute(self, ticket: Ticket) -> Any:
        record = ticket.agent
        if ticket.op:
            if ticket.op == Op.CREATE:
                return self._create(ticket, record)
            if ticket.op == END:
                return self._lives.end(ticket)
            if ticket.op == Op.DOWNLOAD:
                return self._download(ticket)
        instance = record.instance
        if instance is None:
            instance = self._object_of(ticket)  # which says why there is none
        if not ticket.op:
            args, kwargs = self._arguments(ticket)
            if ticket.method is not None and ticket.method.interruptible:
                return self._run_interruptible(ticket, getattr(instance, ticket.name), args, kwargs)
            return getattr(instance, ticket.name)(*args, **kwargs)
        if ticket.op == Op.MEMORY:
            return _memory_of(instance)
        return _attribute_of(instance, ticket)

    @staticmethod
    def _object_of(ticket: Ticket) -> Any:
        """The agent of a call."""
        record = ticket.agent
        if record.instance is None:
            raise _Refused(errors.AgentDeleted(f"{record.agent_id} was deleted before {ticket.name} could start"))
        return record.instance

    def _run_interruptible(
        self, ticket: Ticket, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        region = self._regions[ticket] = Region()
        try:
            return region.run(method, args, kwargs)
        finally:
            del self._regions[ticket]

    def interrupt(self, ticket: Ticket) -> None:
        """Break the code of a call off, if it runs and allows that. Called by the router thread."""
        if ticket.op:
            self._lives.interrupt(ticket)
        region = self._regions.get(ticket)
        if region is not None:
            region.interrupt()

    def _download(self, ticket: Ticket) -> Iterator[int | bytes]:
        if ticket.context is None or ticket.context.sender is None:  # it would be made a list, of any length
            raise _Refused(errors.RemoteProtocolError("a file comes as a stream: the flag is missing"))
        args, _ = self._arguments(ticket)
        try:
            yield from self._files.read(args[0] if args else None)
        except errors.ZmqAgentsError as exc:
            raise _Refused(exc) from exc

    def _arguments(self, ticket: Ticket) -> tuple[tuple[Any, ...], dict[str, Any]]:
        body = ticket.body
        try:
            if len(body[0]) > self.short_bytes:
                return self._long_arguments(ticket)
            if len(body) == 1 and body[0][:1] != TAG:
                return decode_call(body[0])
            if len(body) == 2 and type(body[0]) is bytes and (read := lone_arguments.get(body[0])) is not None:
                return (read(body[1]),), {}
            scope = self._scope(ticket)
            resolve = self._resolver(ticket, scope)
            return decode_call(body[0], body[1:], resolve=resolve, unpickler=self._unpickler, scope=scope)
        except (errors.RemoteProtocolError, errors.SerializationError, errors.MessageTooLarge) as exc:
            raise _Refused(_of_call(ticket, exc)) from exc
        except errors.HostUnreachable as exc:
            if exc.refuses_reference:
                raise _Refused(exc) from None
            raise

    def _long_arguments(self, ticket: Ticket) -> tuple[tuple[Any, ...], dict[str, Any]]:
        payload, *buffers = ticket.body
        scope = self._scope(ticket)
        resolve = self._resolver(ticket, scope)
        with self._turn(ticket):
            codec.check_structure(payload, self._max_structured, f"{ticket.label}: ")
            return decode_call(payload, buffers, resolve=resolve, unpickler=self._unpickler, scope=scope)

    @contextlib.contextmanager
    def _turn(self, ticket: Ticket) -> Iterator[None]:
        """The turn of the user whose call it is, at a long payload; see `turns`."""
        context = ticket.context
        if context is None or ticket.on_loop:  # of a host whose limit makes short payloads long ones
            yield
            return
        with turn_of(ticket.account.reading, context.is_cancelled):
            _check(context)
            yield

    def _scope(self, ticket: Ticket) -> codec.Scope:
        """Which classes the arguments of a call may have: those of the settings, and of the method's annotations."""
        spec, name = ticket.agent.spec, ticket.name
        if ticket.op:
            if ticket.op != Op.CREATE:
                return self._own_scope
            name = "__init__"
        known = self._scopes.get((spec.name, name))
        if known is None or known[0] is not spec:
            cls = self.classes.find(spec.name) if ticket.op else type(ticket.agent.instance)
            methods, skip = ([cls.make], 0) if isinstance(cls, Factory) else annotated(cls, name)
            expected = codec.expected_by(*methods, skip=skip)
            known = spec, self._own_scope._replace(expected=expected)
            self._scopes[spec.name, name] = known
        return known[1]

    def _resolver(self, ticket: Ticket, scope: codec.Scope) -> Callable[[Ref], Any]:
        replies = ticket.dep_replies

        def resolve(ref: Ref) -> Any:
            if replies is not None and isinstance(ref, codec.TaskRef) and ref.task_id in replies:
                return self._value(ticket, replies[ref.task_id], scope)
            bound = self._bind(ref, None, scope)
            return bound.result() if isinstance(ref, codec.TaskRef) else bound

        return resolve

    def _value(self, ticket: Ticket, reply: Reply, scope: codec.Scope) -> Any:
        payload, *buffers = reply.body

        def resolve(ref: Ref) -> Any:
            return self._bind(ref, None, scope)

        with self._turn(ticket) if len(payload) > self.short_bytes else contextlib.nullcontext():
            codec.check_structure(payload, self._max_structured)
            return codec.decode(
                payload, buffers, resolve=resolve, unpickler=self._unpickler, scope=scope, place=None,
                root="a result among the arguments",
            )  # fmt: skip

    def _instance_for(self, ticket: Ticket) -> Any:
        """The object of a new agent, before its hooks are called."""
        record = ticket.agent
        cls = self.classes.find(record.spec.name)
        args, kwargs = self._arguments(ticket)
        for name in record.ours:
            kwargs.pop(name, None)
        if isinstance(cls, Factory):
            return Opening(cls, args, kwargs, self.classes.adapt, record.agent_id, self.services)
        return _make(cls, args, kwargs, record.agent_id, self.services)

    def _create(self, ticket: Ticket, record: AgentRecord) -> bytes:
        instance = self._instance_for(ticket)
        if isinstance(instance, Opening):
            return self._open(ticket, record, instance)
        hooks = record.spec.hooks
        if hooks.starts_on_loop and ticket.context is not None:
            ticket.context.put_off(functools.partial(self._start_on_loop, ticket, instance))
            return _LATER
        if hooks.starts:
            self._lives.start(ticket, instance)
        record.hold(instance)
        return self.description(record)

    def _open(self, ticket: Ticket, record: AgentRecord, opening: Opening) -> bytes:
        """Start an agent that a factory makes: only then is it known what it offers."""
        try:
            self._lives.start(ticket, opening, context=opening.context)
        except BaseException:
            opening.discard()
            raise
        made = opening.made()
        record.become(made.spec, made.options(record.options))
        record.hold(opening.agent)
        return self.description(record, made.packed() if self.config.parent is not None else None)

    async def _start_on_loop(self, ticket: Ticket, instance: Any) -> Reply:
        await self._lives.start_on_loop(ticket, instance)
        ticket.agent.hold(instance)
        return Reply(Code.NONE, (self.description(ticket.agent),))

    def drop(self, record: AgentRecord) -> None:
        """Drop the object of a deleted agent, in a worker thread: its ``__del__`` may take long."""
        if record.spec.hooks.starts:
            self._lives.drop(record)
        record.drop_instance()

    def description(self, record: AgentRecord, made: bytes | None = None) -> bytes:
        """``[agent id, class name, class doc, packed {method: [mark, signature, doc]}]``, packed.

        ``made`` follows, where the host of this process waits for it.
        """
        spec = record.spec
        known = self._packed_methods.get(spec.name)
        if known is None or known[0] is not spec:
            known = self._packed_methods[spec.name] = (spec, codec.pack(_methods_of(spec)))
        packed = known[1]
        instance = record.instance
        if not isinstance(instance, AgentBase) and inspect.getattr_static(instance, "agent_id", _END) is not _END:
            # Its own attribute, of which its class need not know: a proxy must not hide it by the agent's id.
            packed = codec.pack({"agent_id": [ATTRIBUTE, "", ""], **_methods_of(spec)})
        return codec.pack([record.agent_id, spec.name, spec.doc, packed, *([] if made is None else [made])])

    # ------------------------------------------------------------ replies

    def _encode(self, ticket: Ticket, value: Any) -> Reply:
        if value is None:
            return NOTHING
        if ticket.op and ticket.op == Op.CREATE:
            return Reply(Code.NONE, (value,)) if value is not _LATER else PARKED
        plain = encode_plain(value)
        if (
            plain is not None and len(plain[0]) <= self._max_structured
            and (len(plain) == 1 or sum(map(len, plain)) <= self.config.max_message_bytes)
        ):  # fmt: skip
            reply: Reply = new_tuple(Reply, (_NO_ERROR, plain))
            return reply
        # Long arguments often come back, or make a long result; a body is gone when the call was answered before.
        if ticket.body and len(ticket.body[0]) > self.short_bytes:
            with self._turn(ticket):
                encoded = self._encoded(ticket, value)
        else:
            encoded = self._encoded(ticket, value)
        return Reply(_NO_ERROR, (encoded.payload, *encoded.buffers))

    def _encoded(self, ticket: Ticket, value: Any) -> codec.Encoded:
        limit = self.config.max_message_bytes
        try:
            return codec.encode(
                value, root="result", max_bytes=limit, max_structured_bytes=self._max_structured, pickler=self._pickler
            )
        except (errors.SerializationError, errors.MessageTooLarge) as exc:
            label = f"the result of {ticket.label}: {exc}"
            if isinstance(exc, errors.MessageTooLarge):
                raise _Refused(errors.MessageTooLarge(label, exc.size, exc.limit)) from None
            raise _Refused(errors.SerializationError(label, exc.path, exc.type_name)) from None

    @staticmethod
    def cancelled(ticket: Ticket) -> Reply:
        """The reply for a coroutine that was cancelled."""
        error = errors.CallCancelled(f"{ticket.label} was cancelled")
        return error_reply(error, agent=ticket.agent.agent_id, method=ticket.name, call_id=ticket.task_id)

    @staticmethod
    def too_late(ticket: Ticket) -> Reply:
        """The reply for a call whose deadline passed between its start and its code."""
        error = errors.CallTimeout(f"{ticket.label} timed out before its code began")
        return error_reply(error, agent=ticket.agent.agent_id, method=ticket.name, call_id=ticket.task_id)

    def failure(self, ticket: Ticket, exc: BaseException) -> Reply:
        """The reply for ``exc``; whatever is odd about it, there is one."""
        if isinstance(exc, CallInterrupted) or _is_cancellation(exc):
            return self.cancelled(ticket)
        where = {"agent": ticket.agent.agent_id, "method": ticket.name, "call_id": ticket.task_id}
        if isinstance(exc, _Refused):
            return error_reply(exc.error, **where)
        if type(exc) is TypeError:
            _say_what_it_takes(ticket, exc, self.classes)
        try:
            return Reply(Code.AGENT_ERROR, (codec.encode_error(exc, pickler=self._pickler, **where),))
        except BaseException:  # nothing may break a reply
            plain = {"type": "builtins:Exception", "message": type(exc).__name__, **where}
            return Reply(Code.AGENT_ERROR, (codec.pack(plain),))


def _check(context: RunningCall) -> None:
    """Refuse to go on with a call whose caller waits no more."""
    try:
        context.check()
    except errors.ZmqAgentsError as exc:
        raise _Refused(exc) from None


def _say_what_it_takes(ticket: Ticket, exc: TypeError, classes: ClassTable) -> None:
    """Arguments that a method or constructor does not take: add to Python's text which it takes."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename != __file__ or len(exc.args) != 1:
        return  # it was raised by the code of the agent
    name, signature = ticket.name, "" if ticket.method is None else ticket.method.signature
    if ticket.op == Op.CREATE:
        made_by = classes.find(ticket.agent.spec.name)
        name = made_by.short if isinstance(made_by, Factory) else made_by.__name__
        signature = signature_of(made_by.make if isinstance(made_by, Factory) else made_by.__init__)  # type: ignore[misc]
    if signature and "argument" in str(exc.args[0]):
        exc.args = (f"{exc.args[0]}; it takes {name}{without_self(signature)}",)


def _of_call(ticket: Ticket, exc: errors.ZmqAgentsError) -> errors.ZmqAgentsError:
    """An error about the arguments of a call, with the name of the call."""
    if not isinstance(exc, errors.SerializationError):
        return exc
    return errors.SerializationError(f"{ticket.label}: {exc}", exc.path, exc.type_name)


def _is_cancellation(exc: BaseException) -> bool:
    """Whether it is an `asyncio.CancelledError`; if asyncio was never imported, it is none."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(exc, asyncio.CancelledError)


async def _async_items(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _attribute_of(instance: Any, ticket: Ticket) -> Any:
    """A public attribute; what is not there, or is a method that the class does not offer, is `UnknownMethod`."""
    try:
        value = getattr(instance, ticket.name)
    except AttributeError as exc:
        if exc.obj is not instance or exc.name != ticket.name:  # a property that stumbled over something of its own
            raise
        spec = ticket.agent.spec
        text = f"{ticket.agent.agent_id} ({spec.short}) has no public method {ticket.name!r}; it has: "
        text += (", ".join(sorted(spec.methods)) or "none") + errors.did_you_mean(ticket.name, spec.methods)
        raise _Refused(errors.UnknownMethod(text)) from None
    if inspect.ismethod(value) and value.__self__ is instance:
        text = f"{ticket.agent.agent_id} does not offer the method {ticket.name!r} to callers"
        raise _Refused(errors.UnknownMethod(text))
    return value


def _methods_of(spec: ClassSpec) -> dict[str, list[str]]:
    """``{method: [mark, signature, doc]}``, as proxies know them."""
    return {m.name: [m.mark, m.signature, m.doc] for m in spec.methods.values()}


def _make(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], agent_id: str, services: HostServices) -> Any:
    if not issubclass(cls, AgentBase):
        return cls(*args, **kwargs)
    if "to_dist" in kwargs:  # means something where an agent is made by hand; a caller must not have it
        raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument 'to_dist'")
    instance: Any = cls.__new__(cls, *args, **kwargs)
    known = {"_zmqagents_id": agent_id, "_zmqagents_host": services, "_zmqagents_made_with": made_with(args, kwargs)}
    instance.__dict__.update(known)  # its id and its host are known before __init__ runs
    instance.__init__(*args, **kwargs)
    if "_zmqagents_id" not in instance.__dict__:  # a pydantic model has replaced it
        instance.__dict__.update(known)
    return instance


def _memory_of(instance: Any) -> Any:
    """What the agent remembers: ``.memory.get_memory()``, ``.state.context``, or ``.memory`` itself."""
    memory = getattr(instance, "memory", None)
    getter = getattr(memory, "get_memory", None)
    if callable(getter):
        return getter()
    context = getattr(getattr(instance, "state", None), "context", None)
    if context is not None:
        return context
    if memory is None:
        raise errors.UnknownMethod(
            f"{type(instance).__name__} has no memory (no attribute 'memory' or 'state.context')"
        )
    return memory
