"""`AgentProxy`, which looks like the agent, and `RemoteMethod`, one method of it.

Both send nothing but calls, over a `Link`. Arguments are encoded in the caller's
thread, so a value that cannot travel fails there (`SerializationError`); a result is decoded in the thread that
first reads it. A proxy and a result are references: they pickle, they go as arguments to any agent on any
host, and arrive as a proxy, or as the finished value.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import codec, errors
from ..agents.context import read_running_call
from ..agents.origin import loaded_class
from ..agents.spec import ATTRIBUTE, annotated, annotated_attribute, without_self
from ..checks import DEFAULT_TIMEOUT_S
from ..codec import INLINE_LIMIT_BYTES, TAG, AgentRef, TaskRef, decode_plain, encode_plain_call, pickling
from ..connection.connection import trust
from ..tracing import switch
from ..tracing.context import ATTRIBUTES, name_of
from ..wire.link import Link, rebuild_error
from ..wire.messages import MAX_DEPS, MAX_TEXT, Flag, Op, Reply
from .deadlines import UNSET, Timeout, read_deadline, time_left
from .references import link_for
from .result import AsyncResult, decode_reply, unpickler_of
from .stream import Stream

if TYPE_CHECKING:
    from ..tracing.spans import ClientCall, Tracing

__all__ = ["AgentProxy", "bind_reference"]


def bind_reference(
    ref: AgentRef | TaskRef, came_by: Link | None = None, scope: codec.Scope = codec.NO_SCOPE, *,
    awaitable: bool = False,
) -> Any:  # fmt: skip
    """A live proxy or result for a reference from the wire.

    ``came_by``: the link that brought it. If it leads to the reference's own host it is the one to use: the address
    may be one that only others can reach. ``scope``: that of the value in which the reference came.
    """
    codec.check_reference(ref)  # it may come from elsewhere than from the codec, which has done so
    link = came_by if came_by is not None and came_by.server_id == ref.server_id else None
    link = link or link_for(ref.server_id, ref.address)
    if isinstance(ref, AgentRef):
        methods = {name: [*text.partition(" ")[::2], ""] for name, text in ref.methods.items()}
        return AgentProxy(
            link, ref.agent_id, ref.class_name, "", methods, server_id=ref.server_id, awaitable=awaitable,
            scope=scope._replace(expected=None), cls=loaded_class(ref.class_name),
        )  # fmt: skip
    bind = bind_awaited if awaitable else bind_reference
    return AsyncResult(link, ref.task_id, bind, None, task_id=ref.task_id, home=ref.server_id, scope=scope)


def bind_own(ref: AgentRef | TaskRef) -> Any:
    """The same for a reference out of a pickle, made in a program that trusts the private host it leads to."""
    trust(ref.address)
    return bind_reference(ref)


def bind_awaited(ref: AgentRef | TaskRef, came_by: Link | None = None, scope: codec.Scope = codec.NO_SCOPE) -> Any:
    """The same for what is read through `AsyncRpcClient`: its proxies must not block either."""
    return bind_reference(ref, came_by, scope, awaitable=True)


def value_of(link: Link, reply: Reply, scope: codec.Scope = codec.NO_SCOPE) -> Any:
    if reply.code:
        raise rebuild_error(reply, scope, unpickler_of(link))
    body = reply.body
    if len(body) == 1 and len(body[0]) <= INLINE_LIMIT_BYTES and body[0][:1] != TAG:  # as `decode_reply`
        return decode_plain(body[0])
    return decode_reply(link, reply, bind_reference, scope)


def request_body(link: Link, label: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> codec.Encoded:
    """The arguments of a call, encoded here and now; ``label`` names the call in errors."""
    plain = None if kwargs else encode_plain_call(args, link.max_structured_bytes)
    if plain is not None and not plain.buffers:  # most
        return plain
    pickler = pickling.dumps if link.takes_pickles else None
    body = codec.encode_call(
        args, kwargs, what=f"{label}: ", max_bytes=link.max_bytes, max_structured_bytes=link.max_structured_bytes,
        pickler=pickler,
    )  # fmt: skip
    if body.tasks:
        check_results(label, body)
    return body


def check_results(label: str, body: codec.Encoded) -> None:
    """Raise MessageTooLarge for too many results among the arguments."""
    if len(body.tasks) > MAX_DEPS:
        text = f"{label}: {len(body.tasks)} results among the arguments, limit {MAX_DEPS}"
        raise errors.MessageTooLarge(text, len(body.tasks), MAX_DEPS)


def checked_name(name: str, error: type[errors.CallError]) -> str:
    """``name`` if it can be in a message. Raises ``error`` otherwise: no agent or method has such a name."""
    if not isinstance(name, str):
        raise errors.ConfigError(f"a name is a text, not {name!r}")
    if not name:
        raise error("names must not be empty")
    if len(name) > MAX_TEXT:
        raise error(f"names must have at most {MAX_TEXT} characters, got {name[:40]!r}...")
    if not name.isprintable():  # lone surrogates among them
        raise error(f"names must be printable text, got {name[:40]!r}")
    return name


# ---------------------------------------------------------------- proxies

_ASYNC = Flag.DETACHED | Flag.WATCHED  # of a call that gives a result at once


def _check_agent_id(agent_id: object) -> None:
    """A call to "" is a request to the host itself: only `RpcClient` makes those, whatever reference was passed in."""
    if not codec.is_name(agent_id):
        raise errors.UnknownAgent(f"no agent is called {agent_id!r:.60}")


class AgentProxy:
    """An agent on a host, from anywhere: its methods are called as if they were local.

    A method gives its value, an `AsyncResult` or an iterator, as the class says. Any other public name is an
    attribute of the agent, read at each access; setting one raises. Names of the class are known without asking
    the host: ``dir()``, ``help()`` and signatures work offline. Control goes through `RpcClient`, so that no
    name of the agent's is shadowed.
    """

    def __init__(
        self, link: Link, agent_id: str, class_name: str, doc: str, methods: Mapping[str, list[str]], *,
        timeout: Timeout = UNSET, server_id: str | None = None, awaitable: bool = False,
        client: object | None = None, scope: codec.Scope = codec.NO_SCOPE, cls: type | None = None,
    ) -> None:  # fmt: skip
        """``scope``: which classes the values may have that come from the agent; ``cls``: the agent's own class if
        this process has it, whose annotations name further ones.
        """
        _check_agent_id(agent_id)
        own = self.__dict__
        own["_za_link"] = link
        own["_za_id"] = agent_id
        own["_za_class"] = class_name
        own["_za_methods"] = methods
        own["_za_timeout"] = timeout
        own["_za_awaitable"] = awaitable  # made by AsyncRpcClient: every method is awaited
        own["_za_server"] = server_id
        own["_za_client"] = client  # the RpcClient that made it: while that is there, the connection stays open
        own["_za_scope"] = scope
        own["_za_of"] = cls
        own["__doc__"] = doc

    @property
    def agent_id(self) -> Any:
        """The agent's id on its host: printable text, unique there. Its own method or attribute if it has one."""
        own = self._za_methods.get("agent_id")
        if own is None:
            return str(self._za_id)
        return self._za_read("agent_id") if own[0] == ATTRIBUTE else self._za_method("agent_id")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            owner = self.__dict__.get("_za_id")  # not {self!r}: a proxy that is only half made has no repr either
            raise AttributeError(f"{name!r} is private: agent {owner!r} does not offer it")
        checked_name(name, errors.UnknownMethod)
        methods = self._za_methods
        if name in methods:
            method = self._za_method(name)
            self.__dict__[name] = method  # the next access finds it without coming here
            return method
        return self._za_read(name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        method = self.__dict__.get("_za_call")
        if method is None:
            if "__call__" not in self._za_methods:
                raise TypeError(f"{self._za_class} is not callable: {self!r}")
            method = self.__dict__["_za_call"] = self._za_method("__call__")
        return method(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name!r}: {self!r} is a proxy; give the agent a method that sets it")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name!r}: {self!r} is a proxy")

    def __dir__(self) -> list[str]:
        return sorted({"agent_id", *(name for name in self._za_methods)})

    def __repr__(self) -> str:
        return f"<AgentProxy {self._za_class} {self._za_id!r} at {self._za_link.address}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: where the agent is, and its methods."""
        import html  # here: only notebooks need it

        rows = "".join(
            f"<tr><td><code>{html.escape(name + without_self(spec[1]))}</code></td>"
            f"<td>{html.escape(spec[2].partition(chr(10))[0])}</td></tr>"
            for name, spec in sorted(self._za_methods.items())
        )
        title = f"{self._za_class.rpartition(':')[2]} {self._za_id!r} at {self._za_link.address}"
        return f"<b>{html.escape(title)}</b><table>{rows}</table>"

    def __enter__(self) -> AgentProxy:
        """``with client.create_agent(Reader) as reader:`` deletes the agent at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        link, body = self._za_link, request_body(self._za_link, Op.DELETE, (), {})
        with (
            contextlib.suppress(errors.UnknownAgent),  # it is gone already
            switch.request(Op.DELETE, link.address, {"id": self._za_id}) as options,
        ):
            value_of(link, link.call("", Op.DELETE, body, options=options, timeout=DEFAULT_TIMEOUT_S))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AgentProxy):
            return NotImplemented
        mine, theirs = self.__zmqagents_places__(), other.__zmqagents_places__()
        if mine[1] and theirs[1]:
            return mine[:2] == theirs[:2]
        return (mine[0], mine[2]) == (theirs[0], theirs[2])  # one has never reached its host

    def __hash__(self) -> int:
        return hash(self._za_id)

    def __copy__(self) -> AgentProxy:
        return self

    def __deepcopy__(self, memo: Any) -> AgentProxy:
        return self

    def __zmqagents_places__(self) -> tuple[str, str, str]:
        """The agent's id, the id of its host ("": not known yet) and the host's address."""
        return self._za_id, self._za_home(), self._za_link.address

    def __zmqagents_method__(self, name: str) -> RemoteMethod | None:
        """A method of the agent, None if there is none of that name. Sends nothing."""
        spec = self._za_methods.get(name)
        return self._za_method(name) if spec is not None and spec[0] != ATTRIBUTE else None

    def __zmqagents_ref__(self) -> AgentRef:
        link = self._za_link
        if not self._za_home():
            link.settle()
        methods = {name: f"{spec[0]} {spec[1]}" for name, spec in self._za_methods.items()}  # mark, signature
        return AgentRef(self._za_home(), link.address, self._za_id, self._za_class, methods)

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self.__zmqagents_ref__()
        return (bind_own if self._za_link.takes_pickles else bind_reference), (ref,)

    def _za_home(self) -> str:
        return self._za_server or str(self._za_link.server_id)

    def _za_method(self, name: str) -> Any:
        made = AwaitedMethod if self._za_awaitable else RemoteMethod
        return made(
            self._za_link, self._za_id, name, self._za_methods[name], self._za_timeout,
            home=self._za_server or "", client=self._za_client, scope=self._za_scope_of(name),
            class_name=self._za_class,
        )  # fmt: skip

    def _za_scope_of(self, name: str) -> codec.Scope:
        scope: codec.Scope = self._za_scope
        if self._za_of is None:
            return scope
        try:
            methods, _ = annotated(self._za_of, name)
        except AttributeError:  # the host's class of this name has a method more
            return scope
        return scope._replace(expected=codec.expected_by(*methods, of_result=True))

    def _za_scope_of_attribute(self, name: str) -> codec.Scope:
        scope: codec.Scope = self._za_scope
        if self._za_of is None:
            return scope
        scopes: dict[str, codec.Scope] = self.__dict__.setdefault("_za_scopes", {})
        known = scopes.get(name)
        if known is None:
            told = annotated_attribute(self._za_of, name)
            known = scope._replace(expected=codec.expected_by(*told, of_result=True)) if told else scope
            scopes[name] = known
        return known

    def _za_read(self, name: str) -> Any:
        link, body = self._za_link, codec.encode_call((), {})
        left, scope = time_left(self._za_timeout), self._za_scope_of_attribute(name)
        span = None
        if switch.active is not None:
            span = switch.active.begin(name_of(self._za_class, ATTRIBUTES), link.address)
        if self._za_awaitable:
            return _AttributeResult(
                link, f"{self._za_id}.{name}", bind_awaited, body, agent=self._za_id, method=name,
                flags=Flag.ATTRIBUTE | Flag.DETACHED, timeout=left, client=self._za_client,
                scope=scope, span=span,
            )  # fmt: skip
        if span is None:
            return value_of(link, link.call(self._za_id, name, body, flags=Flag.ATTRIBUTE, timeout=left), scope)
        with span:
            reply = link.call(self._za_id, name, body, flags=Flag.ATTRIBUTE, options=span.options, timeout=left)
            return value_of(link, reply, scope)


class RemoteMethod:
    """One method of an agent, as its proxy gives it. Any thread may call it.

    A call returns the value, an `AsyncResult` or a `Stream`, as `returns` says. ``timeout=`` is the call's deadline in
    seconds, unless the method itself has a parameter of that name. Raises what the method raised (`AgentCallError`),
    SerializationError and MessageTooLarge before anything is sent, CallTimeout, and the errors of the connection.
    """

    _bind: Any = staticmethod(bind_reference)

    def __init__(
        self, link: Link, agent_id: str, name: str, spec: list[str], timeout: Timeout, *, home: str = "",
        client: object | None = None, scope: codec.Scope = codec.NO_SCOPE, apart: bool = False, class_name: str = "",
    ) -> None:  # fmt: skip
        """``apart``: `with_timeout` has said the deadline, so a method that takes any keyword gets ``timeout=``.
        ``class_name``: the agent's class, by which a process that has it knows the types of results.
        """
        _check_agent_id(agent_id)
        self._class_name = class_name
        self._apart = apart
        self._home = home
        self._client = client
        self._scope = scope
        self._link = link
        self._agent_id = agent_id
        mark, self._signature, self.__doc__ = spec
        self._returns, self._flags = _read_mark(mark)
        self._timeout = timeout
        self._label = f"{agent_id}.{name}"
        self._what = f"{self._label}: "
        self.__name__ = self.__qualname__ = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if switch.active is not None:
            return self._call_traced(switch.active, args, kwargs, self._returns == "value")
        body, left = self._prepare(args, kwargs)
        if self._returns == "value":
            link = self._link
            return value_of(
                link, link.call(self._agent_id, self.__name__, body, flags=self._flags, timeout=left), self._scope
            )
        return self._submit(body, left)

    def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the method without blocking: returns an `AsyncResult`, or a `Stream` if `returns` is "stream"."""
        if switch.active is not None:
            return self._call_traced(switch.active, args, kwargs, False)
        body, left = self._prepare(args, kwargs)
        return self._submit(body, left)

    def _call_traced(self, tracing: Tracing, args: tuple[Any, ...], kwargs: dict[str, Any], waits: bool) -> Any:
        """Make the call in a span of its own; ``waits``: for the value."""
        link, name = self._link, self.__name__
        call = tracing.begin(name_of(self._class_name, name), link.address, later=not waits)
        try:
            body, left = self._prepare(args, kwargs)
            if not waits:
                return self._submit(body, left, call)
            reply = link.call(self._agent_id, name, body, flags=self._flags, options=call.options, timeout=left)
            value = value_of(link, reply, self._scope)
        except BaseException as exc:
            call.fail(exc)
            raise
        call.end()
        return value

    def send(self, /, *args: Any, **kwargs: Any) -> None:
        """Call the method and wait for nothing: neither for its value nor until it has begun.

        A failure is one line in the log of this program, with its traceback. The call goes on when the program ends.
        """
        if self._returns == "stream":
            raise errors.ConfigError(f"{self._label} gives a stream, which ends without a reader: call it instead")
        self.aio(*args, **kwargs)

    def with_timeout(self, seconds: float | None) -> RemoteMethod:
        """The same method with a deadline of ``seconds`` (None: none), for one that takes a ``timeout`` itself."""
        spec = [self._mark(), self._signature, self.__doc__ or ""]
        return type(self)(
            self._link,
            self._agent_id,
            self.__name__,
            spec,
            seconds,
            home=self._home,
            client=self._client,
            scope=self._scope,
            apart=True,
            class_name=self._class_name,
        )

    def _mark(self) -> str:
        return self._returns + "!" * bool(self._flags)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[codec.Encoded, float | None]:
        timeout = self._timeout
        if "timeout" in kwargs and not self._takes_timeout():
            timeout = kwargs.pop("timeout")
        if timeout is UNSET and read_deadline() is None and read_running_call() is None:
            left: float | None = DEFAULT_TIMEOUT_S  # what `time_left` says then
        else:
            left = time_left(timeout)
        link = self._link
        plain = None if kwargs else encode_plain_call(args, link.max_structured_bytes)
        if plain is not None and (
            not plain.buffers or len(plain.payload) + sum(map(len, plain.buffers)) <= link.max_bytes
        ):
            return plain, left
        pickler = pickling.dumps if link.takes_pickles else None
        body = codec.encode_call(
            args, kwargs, what=self._what, max_bytes=link.max_bytes, max_structured_bytes=link.max_structured_bytes,
            pickler=pickler,
        )  # fmt: skip
        if body.tasks:
            check_results(self._label, body)
        return body, left

    def _submit(self, body: codec.Encoded, left: float | None, call: ClientCall | None = None) -> Any:
        link, agent_id, name = self._link, self._agent_id, self.__name__
        if self._returns == "stream":
            return Stream(
                link,
                self._label,
                self._bind,
                body,
                agent=agent_id,
                method=name,
                timeout=left,
                client=self._client,
                scope=self._scope,
                span=call,
            )
        return AsyncResult(
            link, self._label, self._bind, body, agent=agent_id, method=name, flags=_ASYNC | self._flags,
            timeout=left, home=self._home, client=self._client, scope=self._scope, span=call,
        )  # fmt: skip

    def _takes_timeout(self) -> bool:
        if "timeout" not in self._signature and not (self._apart and "**" in self._signature):
            return False
        parameters = self.__signature__.parameters
        any_keyword = self._apart and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return any_keyword or "timeout" in parameters

    @property
    def agent(self) -> AgentProxy:
        """The proxy of the agent, as far as this method knows it: it has no other method."""
        methods = {self.__name__: [self._mark(), self._signature, self.__doc__ or ""]}
        return AgentProxy(
            self._link, self._agent_id, self._class_name, "", methods, timeout=self._timeout,
            server_id=self._home or None, awaitable=isinstance(self, AwaitedMethod), client=self._client,
            scope=self._scope,
        )  # fmt: skip

    @property
    def returns(self) -> str:
        """What a call returns: "value", "future" (an `AsyncResult`) or "stream"."""
        return self._returns

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature_from(self._signature)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteMethod):
            return NotImplemented
        return self.__name__ == other.__name__ and self.agent == other.agent

    def __hash__(self) -> int:
        return hash(self._label)

    def __copy__(self) -> RemoteMethod:
        return self

    def __deepcopy__(self, memo: Any) -> RemoteMethod:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return method_of, ([self.agent, self.__name__],)

    def __repr__(self) -> str:
        return f"<RemoteMethod {self._label}{self._signature}>"


class AwaitedMethod(RemoteMethod):
    """One method of a proxy of `AsyncRpcClient`: it never blocks, and its result is awaited."""

    _bind = staticmethod(bind_awaited)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.aio(*args, **kwargs)


def method_of(data: Any) -> RemoteMethod:
    """A method that has travelled: ``[proxy, name]``, which may come from anybody. RemoteProtocolError if it is not."""
    is_pair = isinstance(data, (list, tuple)) and len(data) == 2
    if is_pair and isinstance(data[0], AgentProxy) and isinstance(data[1], str):
        method = data[0].__zmqagents_method__(data[1])
        if method is not None:
            return method
    raise errors.RemoteProtocolError("a method of an agent is a reference to the agent and the method's name")


for _kind in (RemoteMethod, AwaitedMethod):  # as an argument it is a method of the same agent, wherever it arrives
    codec.register_type(
        _kind, name="zmqagents:RemoteMethod", to_data=lambda method: [method.agent, method.__name__],
        from_data=method_of,
    )  # fmt: skip


class _AttributeResult(AsyncResult[Any]):
    """The value of an attribute, to be awaited. Called, it was meant as a method, and there is none of that name."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        self.add_done_callback(lambda read: read.exception())  # which would be told in the log, too
        raise errors.UnknownMethod(f"{self._label} is no public method")


_FLAGS = (0, Flag.IDEMPOTENT, Flag.IDEMPOTENT | Flag.ONCE)


def _read_mark(mark: str) -> tuple[str, int]:
    """What a method returns, and the flags of its calls: `agent.MethodSpec.mark` taken apart."""
    returns = mark.rstrip("!")
    return returns, _FLAGS[min(len(mark) - len(returns), 2)]


def _signature_from(text: str) -> inspect.Signature:
    """The signature that ``text`` says, without ``self``; annotations stay text.

    Defaults are what they are on the host, if they are literals; any other is shown as its source, or is ``...``.
    """
    try:
        return _parsed_signature(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A default whose repr is no Python, or no signature; with a NUL; nested too deeply to be parsed.
        return _parsed_signature("(self, *args, **kwargs)")


def _parsed_signature(text: str) -> inspect.Signature:
    statement = ast.parse(f"def f{text}: ...").body[0]
    if not isinstance(statement, ast.FunctionDef):
        raise ValueError(text)
    given = statement.args
    kinds = inspect.Parameter
    positional: list[tuple[ast.arg, Any]] = [(arg, kinds.POSITIONAL_ONLY) for arg in given.posonlyargs]
    positional += [(arg, kinds.POSITIONAL_OR_KEYWORD) for arg in given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    found = [_parameter(arg, kind, value) for (arg, kind), value in zip(positional, defaults, strict=True)]
    found += [_parameter(given.vararg, kinds.VAR_POSITIONAL)] if given.vararg else []
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [_parameter(arg, kinds.KEYWORD_ONLY, value) for arg, value in keywords]
    found += [_parameter(given.kwarg, kinds.VAR_KEYWORD)] if given.kwarg else []
    return inspect.Signature(found[1:] if found and found[0].name in ("self", "cls") else found)


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    note = arg.annotation  # a text already where the module has `from __future__ import annotations`
    annotation = empty if note is None else str(note.value) if isinstance(note, ast.Constant) else ast.unparse(note)
    return inspect.Parameter(arg.arg, kind, default=_default_of(default) if default else empty, annotation=annotation)


class _Source:
    """Stands for a default of which only the source has travelled: ``Mode.FAST``, say."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return self._text


def _default_of(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # no literal, or one like {[]}
        return _Source(ast.unparse(node))
