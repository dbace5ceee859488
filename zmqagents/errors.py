"""Every error that zmqagents raises, and how an error crosses the wire.

One base, `ZmqAgentsError`; each class below it also derives from the builtin that a Python
programmer would catch (`TimeoutError`, `ConnectionError`, `LookupError`, `ValueError` ...), so
code that knows nothing of zmqagents handles them properly.

Two families reach a caller:

* *Host errors* -- the host or the client refused or lost the call: `UnknownAgent`, `HostBusy`,
  `CallTimeout` ... They arrive as exactly the class named.
* *Agent errors* -- the agent's own code raised. The exception arrives as a class that is both
  `AgentCallError` and the original type when that is a builtin or was given to
  `register_exception`; so ``except KeyError`` and ``except AgentCallError`` both work. Any other
  type arrives as a plain `AgentCallError` that carries its name. The remote traceback is text in
  `remote_traceback` and part of ``str(error)``'s notes.

An error travels as data (see `describe` and `rebuild`), never as a pickle, and a type is only
ever looked up in the receiver's own table: nothing is imported by a name from the wire.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

__all__ = [
    "AddressInUse",
    "AgentCrashed",
    "AgentCallError",
    "AgentDeleted",
    "AgentExists",
    "AuthenticationError",
    "BlockingCallError",
    "CallCancelled",
    "CallError",
    "CallLost",
    "CallTimeout",
    "CannotServe",
    "ConfigError",
    "DeadlockError",
    "Fenced",
    "HostBusy",
    "HostLost",
    "HostStopping",
    "HostUnreachable",
    "LaunchError",
    "LoadError",
    "LocalProtocolError",
    "MessageTooLarge",
    "MissingExtra",
    "NoHost",
    "PermissionRefused",
    "ProtocolError",
    "RemoteProtocolError",
    "ResultExpired",
    "SerializationError",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "TooOld",
    "UnknownAgent",
    "UnknownClass",
    "UnknownCluster",
    "UnknownFile",
    "UnknownMethod",
    "UnknownTask",
    "ZmqAgentsError",
    "register_exception",
]

_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep
TRACEBACK_LIMIT_CHARS = 16_384  # the tail is kept: the innermost frames say most
MESSAGE_LIMIT_CHARS = 4_096
MAX_GROUP_DEPTH = 4  # exception groups within groups, and causes of causes
MAX_BASES = 16
MAX_NOTES = 64
MAX_GROUP_MEMBERS = 64


E = TypeVar("E", bound="ZmqAgentsError")


class ZmqAgentsError(Exception):
    """Base of all errors of this package. ``refuses_reference``: a peer has sent a reference that it may not send."""

    refuses_reference: bool = False

    @classmethod
    def of_reference(cls: type[E], text: str) -> E:
        """An error that refuses a reference of a peer; the host that the peer is connected to logs that."""
        error = cls(text)
        error.refuses_reference = True
        return error


# ---------------------------------------------------------------- settings, starting, loading


class ConfigError(ZmqAgentsError, ValueError):
    """A setting is wrong; the text names the setting, the value and the remedy."""


class MissingExtra(ZmqAgentsError, ImportError):
    """An optional dependency is not installed; the text names the extra to install."""


class LoadError(ZmqAgentsError, ImportError):
    """An agent file or directory could not be loaded; the text names the file."""


class LaunchError(ZmqAgentsError, RuntimeError):
    """The host process could not be started; the text holds the child's own reason."""


class AddressInUse(LaunchError, OSError):
    """The port or socket path that the settings ask for is taken."""

    def __str__(self) -> str:  # OSError would print "[Errno ..]" forms for two arguments
        return str(self.args[0]) if self.args else "address in use"


# ---------------------------------------------------------------- connection


class HostUnreachable(ZmqAgentsError, ConnectionError):
    """No host answers at that address; nothing was sent."""


class HostLost(ZmqAgentsError, ConnectionError):
    """The connection ended while something was outstanding; its outcome is not known."""


class AuthenticationError(ZmqAgentsError, ConnectionError):
    """The host refused this client's key, or the client the host's."""


class PermissionRefused(ZmqAgentsError, PermissionError):
    """The caller is known but may not do this."""


class ProtocolError(ZmqAgentsError):
    """The wire protocol was violated."""


class LocalProtocolError(ProtocolError):
    """This side tried to send what the protocol does not allow: a bug of this package."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow."""


# ---------------------------------------------------------------- values


class SerializationError(ZmqAgentsError, TypeError):
    """A value cannot travel. Raised where the value is, before anything is sent.

    ``path`` says where in the value (``kwargs['cfg'].lock``), ``type_name`` what was found there.
    """

    def __init__(self, message: str, path: str = "", type_name: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.type_name = type_name


class MessageTooLarge(ZmqAgentsError, ValueError):
    """A message is over a limit; ``size`` and ``limit`` are bytes (or a count, as the text says)."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


# ---------------------------------------------------------------- calls


class CallError(ZmqAgentsError):
    """Base of what one call can end in. The fields are "" where they are not known."""

    agent: str = ""
    method: str = ""
    call_id: str = ""


class AgentCallError(CallError):
    """The agent's method raised. ``type_name`` is ``module:Class`` of the original exception."""

    type_name: str = ""
    message: str = ""
    remote_traceback: str = ""

    def __str__(self) -> str:
        if not self.type_name:
            return super().__str__()
        if self._short_name() == type(self).__qualname__:  # Python writes the name of the class before the text
            return f"{self._text()}{self._where()}".lstrip()
        return self.with_name()

    def with_name(self) -> str:
        """The name of the original type, what it said, and the agent and method that raised it."""
        text = self._text()
        return f"{self._short_name()}: {text}{self._where()}" if text else f"{self._short_name()}{self._where()}"

    def _short_name(self) -> str:
        return self.type_name.partition(":")[2] or self.type_name or type(self).__qualname__

    def _text(self) -> str:
        return f"{self.message}{_count_of(self)}"

    def _where(self) -> str:
        return f" (in {self.agent}.{self.method})" if self.agent else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _renew, (_as_data(self),)


class UnknownAgent(CallError, LookupError):
    """The host has no agent of this id."""


class UnknownClass(CallError, LookupError):
    """The host knows no agent class of this name; the text lists those that it knows."""


class UnknownFile(CallError, FileNotFoundError):
    """The host serves no file of this name."""


class UnknownMethod(CallError, AttributeError):
    """The agent has no public method or attribute of this name."""


class AgentExists(CallError, ValueError):
    """An agent of this id is there already."""


class AgentDeleted(CallError, LookupError):
    """The agent was deleted while the call was waiting for it."""


class DeadlockError(CallError, RuntimeError):
    """Waiting for this call would never end; ``chain`` names the calls of the cycle."""

    chain: list[str] = []


class CallTimeout(CallError, TimeoutError):
    """The call's deadline passed; the text says in which phase (queued, running) and for how long."""


class CallCancelled(CallError, concurrent.futures.CancelledError):
    """The call was cancelled."""


class CallLost(CallError, ConnectionError):
    """The host that had the call is gone, or the connection to it; whether the call ran is not known."""


class AgentCrashed(CallLost):
    """The process that ran the agent has ended: the text names the signal or exit status, and its last words.

    ``status``: its exit status, below 0 the number of a signal. ``memory_mb``: what it had in RAM when it was last
    looked at, in MiB. ``stderr``: the last lines that it wrote.
    """

    status: int = 0
    memory_mb: float = 0.0
    stderr: str = ""


class Fenced(CallLost):
    """The agent of a cluster has another home by now: what this call has done to its state is not kept."""


class BlockingCallError(CallError, RuntimeError):
    """Code on the host's event loop would block it; ``await`` the call or the result instead."""


class HostBusy(CallError, RuntimeError):
    """A limit is reached and nothing was executed; try again after ``retry_after`` s.

    ``passes``: it is a limit of the whole host, which passes by itself; clients then try again until the call's
    deadline, so that this is raised only after it.
    """

    retry_after: float = 0.1
    passes: bool = False

    @classmethod
    def of_host(cls, text: str) -> HostBusy:
        """A `HostBusy` of a limit of the whole host."""
        full = cls(text)
        full.passes = True
        return full

    @classmethod
    def told_at_once(cls, text: str, retry_after: float) -> HostBusy:
        """One that its caller is told of at once: a client that asked again and again would make it worse."""
        full = cls(text)
        full.retry_after = retry_after
        return full


class HostStopping(CallError, ConnectionError):
    """The host is draining and takes no new calls; nothing was executed."""


# ---------------------------------------------------------------- clusters


class UnknownCluster(CallError, LookupError):
    """The host is no member of this cluster, or this program has not opened it."""


class NoHost(CallError, ConnectionError):
    """No member of the cluster can run the agent; nothing was executed. The text says why."""


class CannotServe(CallError, RuntimeError):
    """This member cannot run the agent, others may: from one member to another. Callers get `NoHost` in the end."""


class TooOld(CallError, RuntimeError):
    """The state of the agent was written by a later version of its class than the host has; nothing was executed."""


# ---------------------------------------------------------------- results


class ResultExpired(CallError, LookupError):
    """The result was there and was dropped, by age or by a limit of the store."""


class UnknownTask(CallError, LookupError):
    """Neither this host nor its store has had a call with this task id."""


class StoreError(ZmqAgentsError):
    """Base of the future store's own errors."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached."""


class StoreFull(StoreError, RuntimeError):
    """The store refuses a further result."""


# ---------------------------------------------------------------- across the wire

# StopIteration and its kin would be swallowed by whatever generator the caller stands in.
_NEVER_MIXED = (StopIteration, StopAsyncIteration)

_NOTE = "Remote traceback:\n"  # begins the note of an error that came from an agent

known_types: dict[str, type[BaseException]] = {}
_mixed: dict[type[BaseException], type[AgentCallError]] = {}


def type_name_of(cls: type) -> str:
    """``module:qualified.Name``, the name a type has on the wire."""
    return f"{cls.__module__}:{cls.__qualname__}"


def register_exception(cls: type[BaseException]) -> type[BaseException]:
    """Let ``cls`` arrive here as itself (and as `AgentCallError`); usable as a decorator."""
    if not (isinstance(cls, type) and issubclass(cls, Exception)):
        raise ConfigError(f"register_exception takes an Exception class, not {cls!r}")
    known_types[type_name_of(cls)] = cls
    return cls


for _value in (*vars(builtins).values(), *list(globals().values())):
    if isinstance(_value, type) and issubclass(_value, Exception):
        known_types[type_name_of(_value)] = _value


def safe_text(value: object, *, of: str = "message") -> str:
    """``str(value)`` of an object that may be hostile: its ``__str__`` may raise or return rubbish."""
    try:
        text = str(value)
    except BaseException as exc:  # whatever a user's __str__ raises must not break the reply
        text = f"<{of} of {type(value).__name__} not printable: its __str__ raised {type(exc).__name__}>"
    # Lone surrogates cannot be packed as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MESSAGE_LIMIT_CHARS else text[:MESSAGE_LIMIT_CHARS] + " ..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'port'?`` with the nearest of ``known``, or "" where none is near: the end of a message."""
    import difflib  # here: only those that make a mistake need it

    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def users_frames(exc: BaseException) -> TracebackType | None:
    """The traceback of ``exc`` from the first frame that is not the package's: above it is only how it was called."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        frames = frames.tb_next
    return frames


def safe_traceback(exc: BaseException) -> str:
    """The formatted traceback with its causes, limited to its tail; never raises."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, users_frames(exc)))
    except BaseException:  # format_exception calls __str__, __cause__, __notes__ of user classes
        try:
            frames = "".join(traceback.format_tb(exc.__traceback__))
        except BaseException:  # a broken line cache, say
            frames = ""
        text = f"Traceback (most recent call last):\n{frames}{type(exc).__name__}: {safe_text(exc)}\n"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= TRACEBACK_LIMIT_CHARS else "...\n" + text[-TRACEBACK_LIMIT_CHARS:]


Pack = Callable[[list[Any]], "bytes | None"]  # values of any type as a payload; None: they cannot be sent
Pickle = Callable[[Any], bytes]
Unpack = Callable[[bytes], Any]  # the reverse; may raise anything
Find = Callable[[str], "type[BaseException] | None"]  # the exception class of a name on the wire


def describe(
    exc: BaseException, *, agent: str = "", method: str = "", call_id: str = "", pack: Pack | None = None,
    pickle: Pickle | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``exc`` as data for `rebuild`: plain strings, numbers, bytes, lists and maps only.

    Its arguments and attributes go along if ``pack`` is given and can send them, its class with ``pickle``, which
    is for receivers that take pickles. Never raises.
    """
    return _with_place(_describe(exc, 0, True, pack, pickle), agent, method, call_id)


def describe_briefly(exc: BaseException, *, agent: str = "", method: str = "", call_id: str = "") -> dict[str, Any]:
    """The same without the traceback, which takes 200 us to write down."""
    return _with_place(_describe(exc, 0, False, None, None), agent, method, call_id)


def _with_place(data: dict[str, Any], agent: str, method: str, call_id: str) -> dict[str, Any]:
    for key, value in (("agent", agent), ("method", method), ("call_id", call_id)):
        if value:
            data[key] = value
    return data


def _describe(
    exc: BaseException, depth: int, with_traceback: bool, pack: Pack | None, pickle: Pickle | None
) -> dict[str, Any]:
    group = _members(exc)
    name, bases = _OURS.get(id(type(exc))) or _names_of(type(exc))
    if isinstance(exc, AgentCallError) and exc.type_name:  # it came from another agent: keep its name
        name, message = exc.type_name, exc.message
    else:
        # A group's str() counts its members, and so does the str() of the group that is made again.
        message = safe_text(exc.message if group else exc)  # type: ignore[attr-defined]
    data: dict[str, Any] = {"type": name, "message": message}
    if bases:
        data["bases"] = bases
    if with_traceback:
        data["traceback"] = safe_traceback(exc)
    if group and depth < MAX_GROUP_DEPTH:
        data["group"] = [
            _describe(member, depth + 1, with_traceback, pack, pickle) for member in group[:MAX_GROUP_MEMBERS]
        ]
    if isinstance(exc, ZmqAgentsError):
        fields = {k: value for k in _FIELDS if type(value := getattr(exc, k, None)) in _FIELD_TYPES}
        if fields:
            data["fields"] = fields
    with contextlib.suppress(Exception):  # a class may have made anything of what it inherits
        if pack is not None:
            _add_contents(data, exc, pack)
        notes = _notes(exc)
        if notes:
            data["notes"] = [safe_text(note) for note in notes[:MAX_NOTES]]
    with contextlib.suppress(Exception):  # a class that no other process can have
        if pickle is not None and (cls := _original(exc)).__module__ not in ("builtins", __name__):
            data["class"] = pickle(cls)
    cause = exc.__cause__
    if isinstance(cause, BaseException) and depth < MAX_GROUP_DEPTH:  # a class may have one that is none
        data["cause"] = _describe(cause, depth + 1, False, pack, pickle)
    return data


def _original(exc: BaseException) -> type:
    """The class of ``exc``; of an `AgentCallError` the one that the agent has raised, if it is there."""
    return next((cls for cls in type(exc).__mro__ if not issubclass(cls, AgentCallError)), type(exc))


def _names_of(cls: type) -> tuple[str, list[str]]:
    return type_name_of(cls), [type_name_of(base) for base in cls.__mro__[1:] if _is_telling(base)][:MAX_BASES]


def _is_telling(cls: type) -> bool:
    return issubclass(cls, Exception) and cls is not Exception and not issubclass(cls, ZmqAgentsError)


def _notes(exc: BaseException) -> list[str]:
    """The notes that were added to ``exc``, without the traceback that `rebuild` adds."""
    notes = vars(exc).get("__notes__")
    found = notes if type(notes) is list else []
    return [note for note in found if type(note) is str and not note.startswith(_NOTE)]


def _add_contents(data: dict[str, Any], exc: BaseException, pack: Pack) -> None:
    """Arguments and attributes, as far as they can be sent. No property of the class is read: it may do anything."""
    args = list(exc.args)
    if isinstance(exc, OSError) and exc.filename is not None:  # OSError takes its file names out of args
        args += [exc.filename] if exc.filename2 is None else [exc.filename, None, exc.filename2]
    if not _members(exc):  # else they are the message and the members
        packed = pack(args)
        if packed is not None:
            data["args"] = packed
    attributes = {key: value for key, value in vars(exc).items() if _is_attribute(key, AgentCallError)}
    for base, names in _BUILTIN_FIELDS.items():
        if isinstance(exc, base):
            attributes |= {name: vars(base)[name].__get__(exc) for name in names}
    if attributes:
        packed = pack([attributes])
        if packed is None:  # those that can be sent
            attributes = {key: value for key, value in attributes.items() if pack([value]) is not None}
            packed = pack([attributes]) if attributes else None
        if packed is not None:
            data["attributes"] = packed


_BUILTIN_FIELDS: dict[type[Exception], tuple[str, ...]] = {  # that are neither in args nor in __dict__
    ImportError: ("name", "path"), NameError: ("name",), AttributeError: ("name",),
}  # fmt: skip


def _is_attribute(name: object, cls: type) -> bool:
    return type(name) is str and name.isidentifier() and not name.startswith("__") and not hasattr(cls, name)


def _members(exc: BaseException) -> list[BaseException]:
    """The exceptions in an ExceptionGroup (Python >= 3.11), none for any other."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    return list(exc.exceptions) if group is not None and isinstance(exc, group) else []


# By the class's id, for a class may have any hash. A host that refuses, or stops, names its errors many times.
_OURS = {
    id(cls): _names_of(cls) for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, ZmqAgentsError)
}  # fmt: skip
_FIELD_TYPES = frozenset({int, float, str, list})
_FIELDS = ("path", "type_name", "size", "limit", "chain", "retry_after", "status", "memory_mb", "stderr")


def rebuild(
    data: Mapping[str, Any], *, from_agent: bool = True, unpack: Unpack | None = None, find: Find | None = None,
) -> Exception:  # fmt: skip
    """The exception that `describe` put into ``data``.

    ``from_agent`` True: a class that is `AgentCallError` and the original type, or its nearest base, as far as this
    process knows it. False: an exception that was passed as a value, or a host error: exactly the class named.
    ``unpack`` undoes describe's ``pack``, and ``find`` knows more classes than `known_types`. Never raises: whatever
    is missing or of a wrong type in ``data`` ends as a plain `AgentCallError`.
    """
    return _rebuild(data, from_agent, 0, unpack, find or known_types.get)


def _rebuild(data: Mapping[str, Any], from_agent: bool, depth: int, unpack: Unpack | None, find: Find) -> Exception:
    original, exact = _class_for(data, find)
    cls: type[Exception]
    is_ours = original is not None and issubclass(original, ZmqAgentsError)
    if original is not None and exact and not from_agent and (is_ours or "agent" not in data):
        cls = original
    else:
        cls = _mix(original)
    message = str(data.get("message", ""))
    members = data.get("group")
    if isinstance(members, list) and depth < MAX_GROUP_DEPTH:
        made = [_rebuild(m, from_agent, depth + 1, unpack, find) for m in members if isinstance(m, Mapping)]
        args: tuple[Any, ...] = (message, made)
    else:
        args = _unpacked_args(data, unpack, (message,))
    exc = _instance_of(cls, original, args)
    _set_contents(exc, data, unpack, from_agent)
    cause = data.get("cause")
    if isinstance(cause, Mapping) and depth < MAX_GROUP_DEPTH:
        exc.__cause__ = _rebuild(cause, from_agent, depth + 1, unpack, find)
    return exc


def _renew(data: Mapping[str, Any]) -> Exception:
    """What unpickles an `AgentCallError`: ``data`` is of `_as_data`."""
    original, _ = _class_for(data, known_types.get)
    args = (data["message"], data["members"]) if data["members"] else tuple(data["args"])
    exc = _instance_of(_mix(original), original, args)
    _set_contents(exc, data, None, True)
    exc.__cause__ = data["reason"]
    return exc


def _class_for(data: Mapping[str, Any], find: Find) -> tuple[type[Exception] | None, bool]:
    """The class that ``data`` names, or the nearest of its bases that is known; and whether it is the class itself."""
    bases = data.get("bases")
    for index, name in enumerate([data.get("type"), *(bases if isinstance(bases, list) else [])[:MAX_BASES]]):
        found = find(name) if isinstance(name, str) else None
        if found is not None and issubclass(found, Exception):
            return found, index == 0
    return None, False


def _unpacked_args(data: Mapping[str, Any], unpack: Unpack | None, instead: tuple[Any, ...]) -> tuple[Any, ...]:
    args = data.get("args")
    if type(args) is bytes and unpack is not None:
        try:
            args = unpack(args)
        except Exception:  # they hold what is not known here: the message is there
            return instead
    return tuple(args) if isinstance(args, (list, tuple)) else instead


def _set_contents(exc: Exception, data: Mapping[str, Any], unpack: Unpack | None, from_agent: bool) -> None:
    """Type and text, fields of this package's errors, the place, attributes and notes."""
    if isinstance(exc, AgentCallError):
        exc.type_name, exc.message = str(data.get("type")), str(data.get("message", ""))
    trace = str(data.get("traceback", ""))
    if isinstance(exc, AgentCallError) or not isinstance(exc, ZmqAgentsError) or from_agent:
        set_traceback(exc, trace)
    fields = data.get("fields")
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        if key in _FIELDS and not (key == "type_name" and isinstance(exc, AgentCallError)):
            setattr(exc, key, value)
    if isinstance(exc, CallError):
        for key in ("agent", "method", "call_id"):
            setattr(exc, key, str(data.get(key, "")))
    found = _unpacked_args({"args": data.get("attributes")}, unpack, ())
    attributes = found[0] if found and type(found[0]) is dict else {}
    for key, value in attributes.items():
        if _is_attribute(key, AgentCallError):
            with contextlib.suppress(Exception):  # a property of that name, say
                setattr(exc, key, value)
    notes = data.get("notes")
    if type(notes) is list and notes:
        exc.__notes__ = [str(note) for note in notes[:MAX_NOTES]]  # type: ignore[attr-defined,unused-ignore]
    if from_agent and "\n" in trace.strip() and hasattr(exc, "add_note"):  # Python >= 3.11; one line says nothing new
        exc.add_note(_NOTE + trace.rstrip())


def set_traceback(exc: BaseException, text: str) -> None:
    """Keep in ``exc`` the traceback that it had on the host."""
    exc.remote_traceback = text  # type: ignore[attr-defined]


def _as_data(exc: AgentCallError) -> dict[str, Any]:
    data: dict[str, Any] = {
        "attributes": [{key: value for key, value in vars(exc).items() if _is_attribute(key, AgentCallError)}],
        "notes": _notes(exc),
        "bases": [type_name_of(base) for base in type(exc).__mro__ if _is_telling(base)],
        "type": exc.type_name,
        "message": exc.message,
        "traceback": exc.remote_traceback,
        "agent": exc.agent,
        "method": exc.method,
        "call_id": exc.call_id,
    }
    return data | {"args": list(exc.args), "members": _members(exc), "reason": exc.__cause__}


def _mix(original: type[BaseException] | None) -> type[AgentCallError]:
    """The class that is both ``original`` and `AgentCallError`, made once."""
    if original is None or issubclass(original, _NEVER_MIXED) or not issubclass(original, Exception):
        return AgentCallError
    if issubclass(original, AgentCallError):
        return original
    mixed = _mixed.get(original)
    if mixed is None:
        if issubclass(AgentCallError, original):
            mixed = AgentCallError
        else:
            try:
                # MemoryError insists on coming first: its instances are laid out by itself.
                bases = (original, AgentCallError) if original is MemoryError else (AgentCallError, original)
                members = {
                    "__module__": original.__module__,
                    "__qualname__": original.__qualname__,
                    "__str__": AgentCallError.__str__,
                }
                mixed = type(original.__name__, bases, members)
            except TypeError:  # a registered class whose layout or metaclass does not mix
                mixed = AgentCallError
        _mixed[original] = mixed
    return mixed


# Their second argument is copied into a tuple, whatever it is.
_COPY_ARGUMENT = (SyntaxError, *filter(None, [getattr(builtins, "BaseExceptionGroup", None)]))


def _instance_of(cls: type[Exception], original: type[BaseException] | None, args: tuple[Any, ...]) -> Exception:
    """An instance with ``args`` set, whatever ``__init__`` the class has."""
    if issubclass(cls, _COPY_ARGUMENT) and len(args) > 1 and type(args[1]) not in (list, tuple):
        args = args[:1]
    if cls is original and cls.__module__ == "builtins":
        try:
            return cls(*args)
        except Exception:  # it wants more arguments than have travelled: a mixed class at least shows the message
            cls = _mix(original)
    try:
        exc = cls.__new__(cls, *args)
        if not isinstance(exc, OSError):  # which has taken the file names out of them
            exc.args = args
        elif not exc.args:  # a class with an __init__ of its own leaves them to that of OSError
            OSError.__init__(exc, *args)
    except Exception:  # __new__ with a signature of its own, or none that anybody may call
        bases = original.__mro__[1:] if original is not None else ()
        base = next((base for base in bases if base.__module__ == "builtins" and issubclass(base, Exception)), None)
        return AgentCallError(*args) if base is None else _instance_of(_mix(base), base, args)
    if original is not None and original.__module__ == "builtins":
        try:  # OSError and UnicodeError keep their fields in C: only __init__ fills them
            original.__init__(exc, *args)
        except Exception:  # e.g. UnicodeDecodeError whose arguments did not travel
            if issubclass(cls, UnicodeError):  # its __str__ is fine, ours comes first; fields stay unset
                exc.args = args
    elif isinstance(exc, (SerializationError, MessageTooLarge)):
        exc.__init__(str(args[0]) if args else "")  # type: ignore[misc]
    return exc


def _count_of(exc: BaseException) -> str:
    count = len(_members(exc))
    return f" ({count} sub-exception{'s' * (count > 1)})" if count else ""
