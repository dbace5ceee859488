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
import traceback
from collections.abc import Mapping
from typing import Any

__all__ = [
    "AddressInUse",
    "AgentCallError",
    "AgentDeleted",
    "AgentExists",
    "AuthenticationError",
    "BlockingCallError",
    "CallCancelled",
    "CallError",
    "CallLost",
    "CallTimeout",
    "ConfigError",
    "DeadlockError",
    "HostBusy",
    "HostLost",
    "HostStopping",
    "HostUnreachable",
    "LaunchError",
    "LoadError",
    "LocalProtocolError",
    "MessageTooLarge",
    "MissingExtra",
    "PermissionRefused",
    "ProtocolError",
    "RemoteProtocolError",
    "ResultExpired",
    "SerializationError",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "UnknownAgent",
    "UnknownClass",
    "UnknownFile",
    "UnknownMethod",
    "UnknownTask",
    "ZmqAgentsError",
    "register_exception",
]

TRACEBACK_LIMIT_CHARS = 16_384  # the tail is kept: the innermost frames say most
MESSAGE_LIMIT_CHARS = 4_096
MAX_GROUP_DEPTH = 4  # exception groups within groups
MAX_GROUP_MEMBERS = 64


class ZmqAgentsError(Exception):
    """Base of all errors of this package."""


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
        name = self.type_name.partition(":")[2] or self.type_name
        where = f" (in {self.agent}.{self.method})" if self.agent else ""
        return f"{name}: {self.message}{where}" if self.message else f"{name}{where}"

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (_as_data(self),)


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


def safe_traceback(exc: BaseException) -> str:
    """The formatted traceback with its causes, limited to its tail; never raises."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except BaseException:  # format_exception calls __str__, __cause__, __notes__ of user classes
        try:
            frames = "".join(traceback.format_tb(exc.__traceback__))
        except BaseException:  # a broken line cache, say
            frames = ""
        text = f"Traceback (most recent call last):\n{frames}{type(exc).__name__}: {safe_text(exc)}\n"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= TRACEBACK_LIMIT_CHARS else "...\n" + text[-TRACEBACK_LIMIT_CHARS:]


def describe(exc: BaseException, *, agent: str = "", method: str = "", call_id: str = "") -> dict[str, Any]:
    """``exc`` as data for `rebuild`: plain strings, numbers and lists only.

    The caller may add ``args`` (a list) when it knows that they can be encoded. Never raises.
    """
    return _with_place(_describe(exc, 0, True), agent, method, call_id)


def describe_briefly(exc: BaseException, *, agent: str = "", method: str = "", call_id: str = "") -> dict[str, Any]:
    """The same without the traceback, which takes 200 us to write down."""
    return _with_place(_describe(exc, 0, False), agent, method, call_id)


def _with_place(data: dict[str, Any], agent: str, method: str, call_id: str) -> dict[str, Any]:
    for key, value in (("agent", agent), ("method", method), ("call_id", call_id)):
        if value:
            data[key] = value
    return data


def _describe(exc: BaseException, depth: int, with_traceback: bool) -> dict[str, Any]:
    if isinstance(exc, AgentCallError) and exc.type_name:  # it came from another agent: keep its name
        name, message = exc.type_name, exc.message
    else:
        name, message = type_name_of(type(exc)), safe_text(exc)
    data: dict[str, Any] = {"type": name, "message": message}
    if with_traceback:
        data["traceback"] = safe_traceback(exc)
    group = _members(exc)
    if group and depth < MAX_GROUP_DEPTH:
        data["group"] = [_describe(member, depth + 1, with_traceback) for member in group[:MAX_GROUP_MEMBERS]]
    if isinstance(exc, ZmqAgentsError):  # of foreign classes nothing is read: a property may do anything
        fields = {k: getattr(exc, k) for k in _FIELDS if type(getattr(exc, k, None)) in (int, float, str, list)}
        if fields:
            data["fields"] = fields
    return data


def _members(exc: BaseException) -> list[BaseException]:
    """The exceptions in an ExceptionGroup (Python >= 3.11), none for any other."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    return list(exc.exceptions) if group is not None and isinstance(exc, group) else []


_FIELDS = ("path", "type_name", "size", "limit", "chain", "retry_after")


def rebuild(data: Mapping[str, Any], *, from_agent: bool = True) -> Exception:
    """The exception that `describe` put into ``data``.

    ``from_agent`` True: a class that is `AgentCallError` and, where this process knows it, the
    original type. False: a host error, exactly the class named. Never raises: whatever is missing
    or of a wrong type in ``data`` ends as a plain `AgentCallError`.
    """
    return _rebuild(data, from_agent, 0)


def _rebuild(data: Mapping[str, Any], from_agent: bool, depth: int) -> Exception:
    name = data.get("type")
    original = known_types.get(name) if isinstance(name, str) else None
    cls: type[Exception]
    if not from_agent and original is not None and issubclass(original, ZmqAgentsError):
        cls = original
    else:
        cls = _mix(original)
    args = data.get("args")
    message = str(data.get("message", ""))
    members = data.get("group")
    if isinstance(members, list) and depth < MAX_GROUP_DEPTH:
        args = (message, [_rebuild(m, True, depth + 1) for m in members if isinstance(m, Mapping)])
    exc = instance_of(cls, original, tuple(args) if isinstance(args, (list, tuple)) else (message,))
    if isinstance(exc, AgentCallError):
        exc.type_name, exc.message = str(name), message
    if isinstance(exc, AgentCallError) or from_agent:
        set_traceback(exc, str(data.get("traceback", "")))
    fields = data.get("fields")
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        if key in _FIELDS and not (key == "type_name" and isinstance(exc, AgentCallError)):
            setattr(exc, key, value)
    if isinstance(exc, CallError):
        for key in ("agent", "method", "call_id"):
            setattr(exc, key, str(data.get(key, "")))
    if from_agent and data.get("traceback") and hasattr(exc, "add_note"):  # Python >= 3.11
        exc.add_note("Remote traceback:\n" + str(data["traceback"]).rstrip())
    return exc


def set_traceback(exc: BaseException, text: str) -> None:
    """Keep in ``exc`` the traceback that it had on the host."""
    exc.remote_traceback = text  # type: ignore[attr-defined]


def _as_data(exc: AgentCallError) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": exc.type_name,
        "message": exc.message,
        "traceback": exc.remote_traceback,
        "agent": exc.agent,
        "method": exc.method,
        "call_id": exc.call_id,
    }
    return data | {"args": list(exc.args)}


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
                members = {"__module__": original.__module__, "__str__": AgentCallError.__str__}
                mixed = type(original.__name__, bases, members)
            except TypeError:  # a registered class whose layout or metaclass does not mix
                mixed = AgentCallError
        _mixed[original] = mixed
    return mixed


def instance_of(cls: type[Exception], original: type[BaseException] | None, args: tuple[Any, ...]) -> Exception:
    """An instance with ``args`` set, whatever ``__init__`` the class has."""
    try:
        exc = cls.__new__(cls, *args)
        if not isinstance(exc, OSError):  # which has taken the file names out of them
            exc.args = args
    except Exception:  # __new__ with a signature of its own
        return AgentCallError(*args)
    if original is not None and original.__module__ == "builtins":
        try:  # OSError and UnicodeError keep their fields in C: only __init__ fills them
            original.__init__(exc, *args)
        except Exception:  # e.g. UnicodeDecodeError whose arguments did not travel
            if issubclass(cls, UnicodeError):  # its __str__ is fine, ours comes first; fields stay unset
                exc.args = args
    elif isinstance(exc, (SerializationError, MessageTooLarge)):
        exc.__init__(str(args[0]) if args else "")  # type: ignore[misc]
    return exc
