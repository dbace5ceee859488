"""The wire: protocol ZA/1, messages between a client and a broker as lists of frames.

DEALER (client) <-> ROUTER (broker), no empty delimiter. ROUTER prepends the peer's routing id, which
is never part of a message. A message is a header and, by kind, further frames:

    header, 28 bytes, big endian (struct ">2sBBHHQQI")
        magic "ZA" | version u8 | kind u8 | flags u16 | code u16 | call_id u64 | token u64 | time_ms u32

    Each frame costs both sides a microsecond or two, so what is short goes in one with the header: of CALL, list and
    payload, behind the length of the list (u16); of RESULT, ERROR and CHUNK, the payload or map. Buffers follow in
    frames of their own. Both forms are legal.

    kind           from     frames after the header
     1 HELLO       client   [map: versions, client, resume, pid, acts_for, program]    token 0
     2 CALL        client   [list: agent, method, deps, options][payload][buffer]*  time_ms: time left, 0 none;
                                                                                    code: see needed
     3 FETCH       client   [str: task id]                                          time_ms: how long to wait
     4 CANCEL      client   none, or [str: task id] of another client's call        call_id: the call
     5 PING        client   none                                                    call_id: nonce
     6 BYE         client   none
     7 CREDIT      client   none                                                    call_id: the stream, time_ms: items
     8 ACK         client   none, or [list of ids above it that are not needed]     call_id: the lowest id needed
     9 WAITS       client   none: it is over, or [list: see Waits]                  call_id: the wait
    65 WELCOME     broker   [map: server_id, port, epoch, server_keys, limits ...]  token: for all that follows; flags
    66 RESULT      broker   [payload][buffer]*                                      call_id; of a stream also
                                                                                    time_ms: how many items it had
    67 ERROR       broker   [map: see errors.describe]                              call_id, code; the same
    68 PENDING     broker   none: a FETCH whose time is over                        call_id
    69 PONG        broker   none                                                    call_id: nonce
    70 NEED_HELLO  broker   none: the token is unknown                              call_id
    71 GOODBYE     broker   [map: message, server_keys]: the broker stops; with a code, why it ends this session alone
    72 CHUNK       broker   [payload][buffer]*: one item of a stream                call_id, time_ms: sequence number
                            [list: done, total, text]: how far the call has come    time_ms: `PROGRESS`; of a CALL that
                                                                                    is WATCHED, and of every FETCH
    73 HINT        broker   [list: agent, address, epoch]: where an agent of a cluster is; see `cluster.protocol`

    deps of CALL: the task ids of the results among its arguments, or nil. options, or nil: "chain" (the sealed task ids
    of the calls that it was made in, outermost first), "far" (where the deps of other hosts are: {task id: [server id,
    address]}), "stream" (of one that is RESENT: the number of the item needed next, the credit sent in all), and what
    a management request takes. To a member its host also says "task" (the task id of the call) and "given" (the last
    frame is a map of the results among the arguments); a member says "waits" of a call that blocks the code of the last
    one in its chain.
    flags of CALL: 1 DETACHED (keep the result in the store)  2 ATTRIBUTE (read, do not call)  4 STREAM
    128 UNTIL (time_ms is the deadline itself, in milliseconds of the machine's monotonic clock, counted round)
    256 LATE (set by the host that reads it: it may have waited while the host was frozen, until it was over)
    512 BYTES (also of RESULT and CHUNK: the buffers are best received as ``bytes``)
    1024 WATCHED (the caller wants to hear how far the call has come)
    2048 ONCE (it is done once, whatever is sent again; of use to the client alone)
    16 RESENT (it may have come before)  64 IDEMPOTENT (running twice does no harm; of use to the client alone)
    flags of WELCOME: 32 RESUMED (what this client had asked for on its former connection is known)
    flags of CANCEL: 8 ALONE (not the calls that it has made)
    codes of ERROR: see `Code`; AGENT_ERROR: the agent's method raised; every other is the host's own word

Replies are kept until the client needs them no more, so that they outlive a broken connection. `needed`, the lowest
id that it still needs, comes as the call_id of ACK, and in CALL as code = call_id - needed + 1, 0 if that is more
than 65,534 or not said. A HELLO with the client id of a connection that is known must bring the same ``resume``, a
secret of that client's; the host then goes on with its calls, and a CALL that is RESENT runs only if it had not come.
``pid`` is the client's process: if the system says the same of the connection, its end ends the session.
``program`` is a random number of that process: a "task" that begins with it is taken from the client, too.
``acts_for``, [user id, role], asks for a session of another user ("": the client's own) or with less than the user's
role; the WELCOME repeats it, so that a host that knows nothing of it is not mistaken for one that has agreed.
``minor`` of the WELCOME: 1 since streams, errors, large arguments and lists have the form that they have here. A client
does not use a host of an earlier form; a host takes what earlier clients say.

An agent called "" is the host itself; its methods are the management requests (see `Op`). Header and
lists are decoded by the broker; payload and buffers go through it unread. Unknown flag bits are
ignored; anything else that does not fit is `RemoteProtocolError`: logged once per peer, dropped. Call ids are made
by the client, 1, 2, 3 ... for each client object; with the client's own
random id they make the task id (`task_id_of`), which is the same wherever it is asked for.
"""

from __future__ import annotations

import base64
import enum
import functools
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..codec import MAX_TEXT, is_name, new_tuple, pack, unpack
from ..errors import MessageTooLarge, RemoteProtocolError, ZmqAgentsError, describe_briefly

__all__ = [
    "CLIENT_ID_BYTES", "MAX_CHAIN", "MAX_DEPS", "MAX_FRAMES", "MAX_TEXT", "MAX_TIME_MS", "MINOR", "STREAM_WINDOW",
    "VERSION", "Ack", "Bye", "Call", "Cancel", "ClientMessage", "Code", "Credit", "Fetch", "Flag", "Frame", "Header",
    "Hello", "Home", "Kind", "Op", "Ping", "Place", "Reply", "Waits", "answer_frames", "bytes_flag", "call_frame",
    "call_frames", "client_prefix", "doubted", "elsewhere_reply", "error_reply", "header", "hint_frames", "home_in",
    "parse_client", "parse_header", "parse_hint", "parse_short_call", "passed_on_meta", "plain_meta", "read_error",
    "reply_from_bytes", "reply_to", "reply_to_bytes", "server_keys_in", "server_keys_of_goodbye", "split_answer",
    "task_id_of", "to_time_ms", "traced_meta", "want_bytes",
]  # fmt: skip

MAGIC = b"ZA"
VERSION = 1
MINOR = 1  # of a host, which its WELCOME says: bodies that a client of an earlier one cannot do without
MAX_FRAMES = 72  # header, list, payload and up to 64 buffers, with a little room
MAX_META_BYTES = 262_144  # MAX_DEPS task ids fit
MAX_ERROR_BYTES = 1_048_576  # message, traceback and arguments of an exception
MAX_SECRET_BYTES = 64  # by which a client comes back; a session keeps it
MAX_DEPS = 4096  # unfinished results among the arguments of one call
MAX_CHAIN = 256  # task ids of the calls that a call was made in, the nearest ones
CLIENT_ID_BYTES = 10  # 80 random bits: two clients never meet
MAX_TIME_MS = 2**32 - 1
MAX_SERVER_KEYS = 4
KEY_CHARS = 40  # of Z85
SNAPSHOT = MAX_TIME_MS  # the number of a CHUNK of a member that holds the state of the agent, beside all items
PROGRESS = MAX_TIME_MS - 1  # the number of a CHUNK that says how far a call has come, beside all items
REMINDER = MAX_TIME_MS - 2  # the number of a CHUNK of a member that holds a reminder, beside all items
STREAM_WINDOW = 16  # items of a stream that may be on their way; the caller grants more as it takes them

COPIED_BYTES = 262_144  # what is no longer is received as bytes, and copied where it must be writable
JOIN_BYTES = 40_960  # what is no longer goes in one frame with the header: copying it costs less than a frame

_HEADER = struct.Struct(">2sBBHHQQI")
_JOINED = struct.Struct(">2sBBHHQQIH")  # and the length of the list
HEADER_BYTES = _HEADER.size
JOINED_BYTES = _JOINED.size

Frame = bytes | memoryview | bytearray


class Kind(enum.IntEnum):
    HELLO = 1
    CALL = 2
    FETCH = 3
    CANCEL = 4
    PING = 5
    BYE = 6
    CREDIT = 7
    ACK = 8
    WAITS = 9
    WELCOME = 65
    RESULT = 66
    ERROR = 67
    PENDING = 68
    PONG = 69
    NEED_HELLO = 70
    GOODBYE = 71
    CHUNK = 72
    HINT = 73


_CALL = int(Kind.CALL)  # comparing and packing a member of an enum costs several times as much


class Flag:
    """Bits of a CALL's flags. Plain numbers: ``&`` of an `enum.IntFlag` would cost the broker 0.3 us each time."""

    DETACHED = 1
    ATTRIBUTE = 2
    STREAM = 4
    ALONE = 8  # of CANCEL
    RESENT = 16
    RESUMED = 32  # of WELCOME
    IDEMPOTENT = 64
    UNTIL = 128
    LATE = 256  # set by the host itself
    BYTES = 512
    WATCHED = 1024
    ONCE = 2048  # its effect on the agent's state is to be there once: of use to the client alone


class Code(enum.IntEnum):
    NONE = 0
    AGENT_ERROR = 1  # rebuilt as AgentCallError and the original type
    HOST_ERROR = 2  # rebuilt as exactly the class named
    BUSY = 3  # the same: HostBusy at a limit of the host's; nothing was executed, time_ms says when to try again
    REFUSED = 4  # the same: a reference among the arguments is none that this peer may send
    ELSEWHERE = 5  # to a member of the cluster: the agent is not here, nothing was executed; a map, see `Home`


class Op:
    """Names of the management requests: methods of the agent ""."""

    CREATE = "create_agent"
    DELETE = "delete_agent"
    DELETE_ALL = "delete_all_agent"
    DESCRIBE = "describe_agent"
    LIST = "get_agent_list"
    OFFERS = "get_offers"
    INFO = "get_server_info"
    METRICS = "metrics"
    HEALTH = "health"
    LOGS = "get_log"
    MEMORY = "get_agent_memory"
    MODELS = "set_model_configs"
    REGISTER = "register_class"
    CALLS = "get_call_list"
    CANCEL = "cancel_call"
    DOWNLOAD = "download_file"
    RESULTS = "get_result_list"
    DUMP = "dump"
    GRAPH = "get_call_graph"
    ERRORS = "get_error_list"
    CHILDREN = "get_child_list"
    RESTART = "restart_child"
    STATE = "put_state"
    STOP = "stop"
    HOSTS = "get_host_list"
    WHERE = "where_is_agent"
    EVENTS = "get_event_list"
    MOVE = "move_agent"
    DRAIN = "drain_host"
    UPGRADE = "upgrade_records"


class Header(NamedTuple):
    magic: bytes
    version: int
    kind: int
    flags: int
    code: int
    call_id: int
    token: int
    time_ms: int


def header(kind: int, call_id: int = 0, token: int = 0, *, flags: int = 0, code: int = 0, time_ms: int = 0) -> bytes:
    """The header frame of a message of ``kind``."""
    return _HEADER.pack(MAGIC, VERSION, kind, flags, code, call_id, token, time_ms)


def parse_header(frame: Frame) -> Header:
    """The header of ``frame``; RemoteProtocolError when it is none, or of another version."""
    try:
        fields = _HEADER.unpack_from(frame)
    except struct.error:
        raise RemoteProtocolError(f"header of {len(frame)} bytes, expected {HEADER_BYTES}") from None
    if len(frame) != HEADER_BYTES and fields[2] not in _JOINABLE:
        raise RemoteProtocolError(f"header of {len(frame)} bytes, expected {HEADER_BYTES}")
    if fields[0] != MAGIC or fields[1] != VERSION:
        raise RemoteProtocolError(f"not a ZA/{VERSION} header: {bytes(frame[:3])!r}")
    head: Header = new_tuple(Header, fields)
    return head


_JOINABLE = frozenset({int(Kind.CALL), int(Kind.RESULT), int(Kind.ERROR), int(Kind.CHUNK)})


def to_time_ms(seconds: float | None) -> int:
    """``seconds`` for a header's time field; at least 1, since 0 means no limit."""
    return 0 if seconds is None else max(1, int(min(seconds * 1000, MAX_TIME_MS)))


def to_until_ms(deadline_s: float) -> int:
    """A deadline on the monotonic clock for the time field of a header with the flag UNTIL; never 0."""
    return int(deadline_s * 1000) & MAX_TIME_MS or 1


def left_s(until_ms: int, now: float) -> float:
    """How many seconds are left of a deadline that `to_until_ms` gave; below 0 if it has passed.

    ``now`` is not rounded: what is left is never more than it was to begin with.
    """
    left_ms = (until_ms - now * 1000) % _ROUND_MS
    return (left_ms if left_ms <= _HALF_MS else left_ms - _ROUND_MS) / 1000


_ROUND_MS = MAX_TIME_MS + 1.0
_HALF_MS = _ROUND_MS / 2


def doubted(frame: bytes, late_s: float, now: float) -> bytes:
    """The first frame of a CALL that may have waited ``late_s`` seconds unread, marked as LATE if it may be over."""
    if len(frame) < HEADER_BYTES or frame[3] != _CALL:
        return frame
    flags, time_ms = _FLAGS.unpack_from(frame, 4)[0], _TIME.unpack_from(frame, 24)[0]
    if flags & Flag.UNTIL or not 0 < time_ms <= late_s * 1000:
        return frame
    until_ms = to_until_ms(now - late_s + time_ms / 1000)
    flags |= Flag.UNTIL | Flag.LATE
    return b"".join((frame[:4], _FLAGS.pack(flags), frame[6:24], _TIME.pack(until_ms), frame[28:]))


_FLAGS, _TIME = struct.Struct(">H"), struct.Struct(">I")


def client_prefix(client_id: bytes) -> str:
    """The readable form of a client's id, first half of its task ids: 16 lower-case characters."""
    return base64.b32encode(client_id).decode().lower()


def task_id_of(prefix: str, call_id: int) -> str:
    """The id under which a call is known everywhere: ``mfzwizltoqqhk4tf-17``."""
    return f"{prefix}-{call_id}"


# ---------------------------------------------------------------- replies


class Reply(NamedTuple):
    """What a call ended in: ``code`` NONE and the encoded value, or an error as ``[packed map]``."""

    code: int
    body: Sequence[Frame]


def error_reply(exc: ZmqAgentsError, *, agent: str = "", method: str = "", call_id: str = "") -> Reply:
    """The host's own refusal as a reply; it arrives as exactly this class."""
    data = describe_briefly(exc, agent=agent, method=method, call_id=call_id)  # the host's own frames help no caller
    code = Code.BUSY if getattr(exc, "passes", False) else Code.HOST_ERROR
    return Reply(Code.REFUSED if exc.refuses_reference else code, (pack(data),))


def read_error(reply: Reply) -> tuple[str, dict[str, Any]]:
    """The name of the error in ``reply`` and the description that `errors.describe` gave; "" and {} if there is none.

    The reply may come from another process, and the description may be long: it is in memory already.
    """
    try:
        data = unpack(reply.body[0], max_bytes=sys.maxsize)
    except (RemoteProtocolError, IndexError):
        return "", {}
    return (str(data.get("type", "")).rpartition(":")[2], data) if isinstance(data, dict) else ("", {})


_COUNT = struct.Struct(">BI")
_SINGLE = struct.Struct(">BIQ")
_LENGTH = struct.Struct(">Q")


def reply_to_bytes(reply: Reply) -> bytes:
    """``reply`` as one value for the store: code u8, count u32, that many lengths u64, then the frames."""
    code, body = reply
    if len(body) == 1:
        frame = body[0]
        return b"".join((_SINGLE.pack(code, 1, len(frame)), frame))
    parts = [_COUNT.pack(code, len(body)), *(_LENGTH.pack(len(frame)) for frame in body)]
    return b"".join((*parts, *body))


def reply_from_bytes(data: bytes) -> Reply:
    """The reverse of `reply_to_bytes`; RemoteProtocolError for anything else."""
    try:
        code, count = _COUNT.unpack_from(data)
        start = _COUNT.size + count * _LENGTH.size
        lengths = [_LENGTH.unpack_from(data, _COUNT.size + i * _LENGTH.size)[0] for i in range(min(count, MAX_FRAMES))]
    except struct.error:
        raise RemoteProtocolError("a stored reply is cut short") from None
    if not 1 <= count <= MAX_FRAMES or start + sum(lengths) != len(data):
        raise RemoteProtocolError("a stored reply is not what it says")
    body = []
    for length in lengths:
        body.append(data[start : start + length])
        start += length
    return Reply(code, tuple(body))


# ---------------------------------------------------------------- messages of a client, as the broker reads them


class Hello(NamedTuple):
    call_id: int
    client_id: bytes
    options: dict[str, Any]


class Call(NamedTuple):
    call_id: int
    flags: int
    time_ms: int
    agent: str
    method: str
    deps: Sequence[str]
    options: dict[str, Any]
    body: Sequence[Frame]  # payload and buffers
    needed: int = 0  # the client needs no reply below this id


class Fetch(NamedTuple):
    call_id: int
    task_id: str
    time_ms: int


class Cancel(NamedTuple):
    call_id: int
    task_id: str  # "": the sender's own call
    alone: bool = False  # the calls that it has made go on


class Ping(NamedTuple):
    nonce: int


class Credit(NamedTuple):
    call_id: int
    items: int


class Ack(NamedTuple):
    needed: int
    beyond: Sequence[int] = ()  # ids above it that are not needed either


class Bye(NamedTuple):
    pass


class Place(NamedTuple):
    """Where the host sees whether a wait goes on: ``number`` stands in ``slot`` of the member's file ``fd`` then."""

    fd: int
    slot: int
    number: int


class Waits(NamedTuple):
    """The code of the call ``task_id`` waits for all or ``any_of`` others; "": the wait ``call_id`` is over.

    ``received``: if it waits for the next item of a stream, how many of them it has; -1: for the end of calls.
    ``place``: where to see that it is over before that is told.
    """

    call_id: int
    task_id: str = ""
    task_ids: Sequence[str] = ()
    any_of: bool = False
    received: int = -1
    place: Place | None = None


class Home(NamedTuple):
    """Where an agent of a cluster is: what a HINT says, and an ERROR with the code ELSEWHERE.

    ``address``: of the host, "" if it is not known. ``epoch``: of the agent's activation there: of two hints the one
    with the higher epoch counts.
    """

    agent: str
    address: str
    epoch: int


def hint_frames(token: int, home: Home) -> list[Frame]:
    """A HINT message."""
    return [header(Kind.HINT, 0, token), pack(list(home))]


def parse_hint(frames: Sequence[Frame]) -> Home:
    """What a HINT says, given with its header; RemoteProtocolError for anything else."""
    return _home(_meta(frames)) if len(frames) == 2 else _home(None)


def elsewhere_reply(home: Home) -> Reply:
    """The answer to a member whose call is for an agent that is not here."""
    return Reply(Code.ELSEWHERE, (pack(list(home)),))


def home_in(reply: Reply) -> Home:
    """What an answer with the code ELSEWHERE says; RemoteProtocolError for anything else."""
    return _home(unpack(reply.body[0], max_bytes=MAX_META_BYTES) if reply.body else None)


def _home(value: object) -> Home:
    if not isinstance(value, list) or len(value) != 3 or type(value[2]) is not int:
        raise RemoteProtocolError("the home of an agent is not [agent, address, epoch]")
    return Home(_text(value[0], "agent id"), _text(value[1], "address"), value[2])


ClientMessage = Hello | Call | Fetch | Cancel | Ping | Bye | Credit | Ack | Waits


def call_frames(
    call_id: int, token: int, agent: str, method: str, body: Sequence[Frame], *,
    flags: int = 0, timeout_s: float | None = None, deps: Sequence[str] = (), options: dict[str, Any] | None = None,
    needed: int = 0,
) -> list[Frame]:  # fmt: skip
    """A CALL message. ``timeout_s`` is the time left, with the flag UNTIL the deadline; None: there is none.
    ``needed`` 0: not said.

    MessageTooLarge for what the broker would drop without a word.
    """
    meta = plain_meta(agent, method) if not (deps or options) else pack([agent, method, deps or None, options or None])
    if len(meta) > MAX_META_BYTES or len(deps) > MAX_DEPS or len(body) + 2 > MAX_FRAMES:
        raise _too_large(len(meta), len(deps), len(body) + 2)
    if len(body) > 1:
        flags |= bytes_flag(body[1:])
    joined = call_frame(call_id, token, meta, body[0], flags, timeout_s, needed)
    if joined is not None:
        return [joined, *body[1:]]
    time_ms = to_until_ms(timeout_s) if timeout_s is not None and flags & Flag.UNTIL else to_time_ms(timeout_s)
    head = _HEADER.pack(MAGIC, VERSION, _CALL, flags, _behind(call_id, needed), call_id, token, time_ms)
    return [head, meta, *body]


def _behind(call_id: int, needed: int) -> int:
    return call_id - needed + 1 if needed and call_id - needed < 0xFFFF else 0


def call_frame(
    call_id: int, token: int, meta: bytes, payload: Frame, flags: int, timeout_s: float | None, needed: int
) -> Frame | None:
    """The same in one frame, if ``meta`` (see `plain_meta`) and ``payload`` are short enough for that; else None.

    Buffers follow it in frames of their own.
    """
    length = len(meta)
    if len(payload) > JOIN_BYTES or length > JOIN_BYTES:
        return None
    behind = 1 if needed == call_id else _behind(call_id, needed)
    time_ms = 0 if timeout_s is None else int(timeout_s * 1000)
    if timeout_s is not None and not 0 < time_ms <= MAX_TIME_MS:
        time_ms = to_until_ms(timeout_s) if flags & Flag.UNTIL else to_time_ms(timeout_s)
    head = _JOINED.pack(MAGIC, VERSION, _CALL, flags, behind, call_id, token, time_ms, length)
    return b"".join((head, meta, payload))


def answer_frames(
    kind: int, call_id: int, token: int, body: Sequence[Frame], *, code: int = 0, time_ms: int = 0
) -> list[Frame]:
    """A RESULT, ERROR or CHUNK message."""
    if len(body) == 1:
        payload = body[0]
        head = _HEADER.pack(MAGIC, VERSION, kind, 0, code, call_id, token, time_ms)
        return [head + payload] if len(payload) <= JOIN_BYTES else [head, payload]
    flags = bytes_flag(body[1:]) if body else 0
    head = _HEADER.pack(MAGIC, VERSION, kind, flags, code, call_id, token, time_ms)
    if body and len(body[0]) <= JOIN_BYTES:
        return [head + body[0], *body[1:]]
    return [head, *body]


def bytes_flag(buffers: Sequence[Frame]) -> int:
    """The flag BYTES, if all ``buffers`` are to arrive as ``bytes``: those that are such, and short ones.

    What is to arrive as memory that can be written to is no ``bytes`` here. If it is short, it is received faster as
    bytes, and copied.
    """
    for buffer in buffers:
        if type(buffer) is not bytes and len(buffer) > COPIED_BYTES:
            return 0
    return Flag.BYTES


def want_bytes(first: Frame) -> bool:
    """Whether the message that begins with this frame has the flag BYTES."""
    return len(first) >= HEADER_BYTES and first[4] & _BYTES != 0


_BYTES = Flag.BYTES >> 8  # in the first byte of the flags


def split_answer(frames: Sequence[Frame]) -> tuple[Header, Sequence[Frame]]:
    """The header of a broker's message, and the frames after it; RemoteProtocolError as `parse_header`."""
    first = frames[0]
    head = parse_header(first)
    if len(first) > HEADER_BYTES:
        return head, (first[HEADER_BYTES:], *frames[1:])
    return head, frames[1:]


_WELCOME_COUNTS = ("max_message_bytes", "max_structured_bytes", "max_calls", "max_open_bytes")


def parse_welcome(frames: Sequence[Frame]) -> dict[str, Any]:
    """The map of a WELCOME; RemoteProtocolError if a field that a client uses is none that it could use."""
    welcome = unpack(frames[1], max_bytes=MAX_META_BYTES) if len(frames) > 1 else None
    if not isinstance(welcome, dict):
        raise RemoteProtocolError("WELCOME without its map")
    for name in ("server_id", "epoch"):
        if not is_name(welcome.get(name, "-")):
            raise RemoteProtocolError(f"WELCOME with a wrong {name}")
    for name in _WELCOME_COUNTS:
        count = welcome.get(name, 1)
        if type(count) is not int or count < 1:
            raise RemoteProtocolError(f"WELCOME with a wrong {name}")
    if "version" in welcome and type(welcome.get("minor", 0)) is not int:
        raise RemoteProtocolError("WELCOME with a wrong minor")
    server_keys_in(welcome)
    limit_s = welcome.get("max_timeout_s", 1.0)
    if type(limit_s) not in (int, float) or not 0 < limit_s < 1e9:
        raise RemoteProtocolError("WELCOME with a wrong max_timeout_s")
    return welcome


def server_keys_in(said: dict[str, Any]) -> list[str]:
    """The public keys by which the host may be known from now on, of a WELCOME or GOODBYE; empty if it does not say.

    RemoteProtocolError for what are none.
    """
    keys = said.get("server_keys", [])
    if not isinstance(keys, list) or len(keys) > MAX_SERVER_KEYS:
        raise RemoteProtocolError("server_keys are not a short list")
    if not all(isinstance(key, str) and len(key) == KEY_CHARS and key.isascii() for key in keys):
        raise RemoteProtocolError("server_keys that are none")
    return keys


def server_keys_of_goodbye(frames: Sequence[Frame]) -> list[str]:
    """The same for the frames of a GOODBYE, whose map an older host may have left out."""
    said = unpack(frames[1], max_bytes=MAX_META_BYTES) if len(frames) > 1 else None
    return server_keys_in(said) if isinstance(said, dict) else []


def reply_to(call_id: int, frames: Sequence[Frame]) -> Reply | None:
    """The reply in a broker's message if it answers this call, and ends it; else None."""
    first = frames[0]
    if len(first) < HEADER_BYTES:
        return None
    magic, version, kind, _, code, about, _, _ = _HEADER.unpack_from(first)
    if about != call_id or kind not in _LAST_WORDS or code == _BUSY or version != VERSION or magic != MAGIC:
        return None
    if len(frames) == 1:
        body: Sequence[Frame] = (first[HEADER_BYTES:],) if len(first) > HEADER_BYTES else ()
    else:
        body = frames[1:] if len(first) == HEADER_BYTES else (first[HEADER_BYTES:], *frames[1:])
    reply: Reply = new_tuple(Reply, (code, body))
    return reply


_LAST_WORDS = (int(Kind.RESULT), int(Kind.ERROR))
_BUSY = int(Code.BUSY)


@functools.lru_cache(maxsize=4096)
def plain_meta(agent: str, method: str) -> bytes:
    """The list of a CALL without dependencies and options."""
    return pack([agent, method, None, None])


def traced_meta(agent: str, method: str, options: dict[str, Any]) -> bytes | None:
    """The list of a CALL without dependencies, whose options are a ``traceparent`` alone; None: they are not."""
    text = options.get("traceparent")
    if len(options) != 1 or type(text) is not str or len(text) != _TRACE_CHARS:
        return None
    return b"".join((plain_meta(agent, method)[:-1], _TRACE, text.encode()))


def passed_on_meta(agent: str, method: str, user: str, task_id: str) -> bytes:
    """The list of a CALL without dependencies, whose options are ``user`` and ``task`` alone: one that is passed on."""
    return _passed_on_part(agent, method, user) + pack(task_id)


@functools.lru_cache(maxsize=4096)
def _passed_on_part(agent: str, method: str, user: str) -> bytes:
    """All of that list but the task id."""
    return pack([agent, method, None, {"user": user, "task": ""}])[:-1]


_TRACE_CHARS = 55
_TRACE = pack({"traceparent": "x" * _TRACE_CHARS})[:-_TRACE_CHARS]  # all of the options but the text itself
_TRACE_BYTES = len(_TRACE) + _TRACE_CHARS
_NO_OPTIONS = pack(None)


def _plain_part(meta: Frame) -> bytes:
    """The list of the same CALL without its options, where these are a ``traceparent`` alone; b"": they are not."""
    if len(meta) <= _TRACE_BYTES or meta[-_TRACE_BYTES:-_TRACE_CHARS] != _TRACE:
        return b""
    return bytes(meta[:-_TRACE_BYTES]) + _NO_OPTIONS


def _too_large(meta_bytes: int, deps: int, frames: int) -> MessageTooLarge:
    limits = (
        ("bytes beside the arguments", meta_bytes, MAX_META_BYTES),
        ("results among the arguments", deps, MAX_DEPS),
        ("frames", frames, MAX_FRAMES),
    )
    what, size, limit = next(each for each in limits if each[1] > each[2])
    return MessageTooLarge(f"a call of {size} {what}, limit {limit}", size, limit)


def parse_client(frames: Sequence[Frame], head: Header | None = None) -> ClientMessage:
    """The message that a client sent; RemoteProtocolError for anything that is not one."""
    if head is None:
        if not frames:
            raise RemoteProtocolError("message without a header")
        head = parse_header(frames[0])
    kind = head.kind
    if kind == _CALL and len(frames[0]) > HEADER_BYTES:
        frames = _unjoined(frames)
    if kind not in _FRAME_COUNTS:
        raise RemoteProtocolError(f"unknown kind {kind}")
    least, most = _FRAME_COUNTS[kind]
    if not least <= len(frames) <= most:
        raise RemoteProtocolError(f"kind {kind} in {len(frames)} frames, expected {least} to {most}")
    if kind == _CALL:
        return _parse_call(head, frames)
    if kind == Kind.PING:
        return Ping(head.call_id)
    if kind == Kind.HELLO:
        return _parse_hello(head, frames)
    if kind == Kind.FETCH:
        return Fetch(head.call_id, _text(_meta(frames), "task id"), head.time_ms)
    if kind == Kind.CANCEL:
        task_id = _text(_meta(frames), "task id") if len(frames) > 1 else ""
        return Cancel(head.call_id, task_id, bool(head.flags & Flag.ALONE))
    if kind == Kind.CREDIT:
        return Credit(head.call_id, head.time_ms)
    if kind == Kind.ACK:
        return Ack(head.call_id, _ids(_meta(frames)) if len(frames) > 1 else ())
    if kind == Kind.WAITS:
        return _parse_waits(head, _meta(frames)) if len(frames) > 1 else Waits(head.call_id)
    return Bye()


# Frames of each kind that a client sends, the header included: at least, at most.
_FRAME_COUNTS = {
    int(Kind.HELLO): (2, 2), int(Kind.CALL): (3, MAX_FRAMES), int(Kind.FETCH): (2, 2), int(Kind.CANCEL): (1, 2),
    int(Kind.PING): (1, 1), int(Kind.BYE): (1, 1), int(Kind.CREDIT): (1, 1),
    int(Kind.ACK): (1, 2), int(Kind.WAITS): (1, 2),
}  # fmt: skip


def _unjoined(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames of a CALL whose first three came as one."""
    first = frames[0]
    if len(first) < JOINED_BYTES:
        raise RemoteProtocolError(f"CALL whose first frame has {len(first)} bytes")
    end = JOINED_BYTES + _JOINED.unpack_from(first)[-1]
    if end > len(first):
        raise RemoteProtocolError("CALL whose list is longer than the message")
    return first, first[JOINED_BYTES:end], first[end:], *frames[1:]


def _meta(frames: Sequence[Frame]) -> Any:
    return unpack(frames[1], max_bytes=MAX_META_BYTES)


def _texts(value: object, what: str, most: int) -> Sequence[str]:
    """``value`` as a list of short texts, None as an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most:
        raise RemoteProtocolError(f"{what} of CALL is not a list of at most {most} task ids")
    for each in value:
        _text(each, what)
    return value


def _ids(value: object) -> Sequence[int]:
    if not isinstance(value, list) or len(value) > MAX_DEPS or not all(type(each) is int for each in value):
        raise RemoteProtocolError(f"ACK takes a list of at most {MAX_DEPS} call ids")
    return value


def _parse_waits(head: Header, meta: object) -> Waits:
    if not isinstance(meta, list) or len(meta) != 5 or type(meta[3]) is not int:
        raise RemoteProtocolError("WAITS takes [task id, task ids, any of them, items received, its place]")
    task_ids, place = _texts(meta[1], "WAITS", MAX_DEPS), meta[4]
    if place is not None:
        if not isinstance(place, list) or len(place) != 3 or any(type(n) is not int or n < 0 for n in place):
            raise RemoteProtocolError("the place of WAITS is not [descriptor, index, number]")
        place = Place(*place)
    return Waits(head.call_id, _text(meta[0], "task id"), task_ids, bool(meta[2]), meta[3], place)


def _far(value: object) -> dict[str, list[str]]:
    """Where the results among ``deps`` are that another host has: ``{task id: [server id, address]}``."""
    if not isinstance(value, dict) or len(value) > MAX_DEPS:
        raise RemoteProtocolError("far of CALL is not a map of task ids")
    for task_id, place in value.items():
        _text(task_id, "task id")
        if not isinstance(place, list) or len(place) != 2:
            raise RemoteProtocolError("far of CALL does not say [server id, address]")
        for text in place:
            _text(text, "address")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise RemoteProtocolError(f"{what} is not a text of at most {MAX_TEXT} characters")
    return value


def parse_short_call(frames: Sequence[Frame]) -> tuple[int, Call, bool] | None:
    """Token and CALL of a message without results among its arguments, whose header, list and payload are one frame.

    The third: whether it has no options, or a ``traceparent`` alone.

    None: `parse_client` has to read it, or to say what is wrong with it. It has read one to the same agent and method
    before if this one is understood and has no options, so that nothing is checked here twice.
    """
    frame = frames[0]
    if type(frame) is not bytes or len(frame) < JOINED_BYTES or frame[:4] != _CALL_START:
        return None
    _, _, _, flags, behind, call_id, token, time_ms, length = _JOINED.unpack_from(frame)
    end = JOINED_BYTES + length
    meta, options, is_plain = frame[JOINED_BYTES:end], _NOTHING, True
    target = plain_targets.get(meta)
    if target is None:
        said = _said_more(meta)
        if said is None:
            return None
        target, options, is_plain = said
    if end > len(frame) or not call_id or len(frames) > MAX_FRAMES - 2:
        return None
    needed = call_id - behind + 1 if behind else 0
    body = (frame[end:],) if len(frames) == 1 else (frame[end:], *frames[1:])
    call = new_tuple(Call, (call_id, flags, time_ms, target[0], target[1], (), options, body, needed))
    return token, call, is_plain


def _said_more(meta: bytes) -> tuple[tuple[str, str], dict[str, Any], bool] | None:
    """Agent and method of a CALL with options, these, and whether they are a ``traceparent`` alone; None as above."""
    if meta[1:2] != _TO_HOST:
        start = meta.rfind(_TASK) + len(_TASK)
        known, size = passed_on_targets.get(meta[:start]), len(meta) - start - 1
        if known is not None and 0 <= size <= _SHORT_BYTES and meta[start] == _SHORT_TEXT + size:
            try:
                return known[0], {"user": known[1], "task": meta[start + 1 :].decode()}, False
            except UnicodeDecodeError:
                return None
        target = plain_targets.get(_plain_part(meta))
        if target is not None:
            return target, {"traceparent": meta[-_TRACE_CHARS:].decode("latin-1")}, True
    said = _with_options(meta)
    return None if said is None else (*said, False)


_TASK = pack("task")
_TO_HOST = pack("")  # the agent of a request to the host itself, behind the byte that says how long the list is
_SHORT_TEXT, _SHORT_BYTES = 0xA0, 31  # what stands before a text of up to 31 bytes is this and its length
passed_on_targets: dict[bytes, tuple[tuple[str, str], str]] = {}  # agent, method and user, by all before the task id


def _with_options(meta: bytes) -> tuple[tuple[str, str], dict[str, Any]] | None:
    """Agent and method, and options of a CALL that has some, and no results among its arguments; None: see above."""
    try:
        agent, method, deps, options = unpack(meta, max_bytes=MAX_META_BYTES)
    except (RemoteProtocolError, TypeError, ValueError):
        return None
    if deps is not None or type(options) is not dict or type(agent) is not str or type(method) is not str:
        return None
    if len(agent) > MAX_TEXT or len(method) > MAX_TEXT or not _SAID_MORE_FULLY.isdisjoint(options):
        return None
    if agent and len(options) == 2 and "user" in options and "task" in options:
        _note_passed_on(meta, (agent, method), options["user"], options["task"])
    return (agent, method), options


def _note_passed_on(meta: bytes, target: tuple[str, str], user: object, task_id: object) -> None:
    """Remember how this list begins, if it is one that `passed_on_meta` makes, and its beginning is not long."""
    if not (isinstance(user, str) and isinstance(task_id, str)):
        return
    start = len(meta) - len(pack(task_id))
    if start <= _MAX_BEGINNING_BYTES and meta == pack([*target, None, {"user": user, "task": task_id}]):
        if len(passed_on_targets) >= _MAX_PLAIN_TARGETS:
            passed_on_targets.clear()
        passed_on_targets[meta[:start]] = target, user


_SAID_MORE_FULLY = frozenset(("chain", "far", "traceparent"))  # `_parse_call` looks at these, and remembers the last


_NOTHING: dict[str, Any] = {}  # options are read, never written
_CALL_START = MAGIC + bytes([VERSION, Kind.CALL])
plain_targets: dict[Frame, tuple[str, str]] = {}  # packed lists that say no more than agent and method: most do
_MAX_PLAIN_TARGETS = 8_192
_MAX_BEGINNING_BYTES = 512  # so that all of them take some MiB at most, whoever sends them


def _parse_call(head: Header, frames: Sequence[Frame]) -> Call:
    needed = head.call_id - head.code + 1 if head.code else 0
    plain = plain_targets.get(frames[1]) if type(frames[1]) is bytes else None
    if plain is not None and head.call_id:
        return Call(head.call_id, head.flags, head.time_ms, *plain, (), {}, frames[2:], needed)
    meta = _meta(frames)
    if not isinstance(meta, list) or len(meta) != 4:
        raise RemoteProtocolError("CALL takes [agent, method, deps, options]")
    agent, method, deps, options = meta
    if options is None:
        options = {}
    elif not isinstance(options, dict):
        raise RemoteProtocolError("options of CALL are not a map")
    else:
        if "chain" in options:
            options["chain"] = _texts(options["chain"], "chain", MAX_CHAIN)
        if "far" in options:
            options["far"] = _far(options["far"])
    if head.call_id == 0:
        raise RemoteProtocolError("CALL with id 0")
    target = _text(agent, "agent id"), _text(method, "method name")
    if deps is None and type(frames[1]) is bytes and (not options or options.keys() == {"traceparent"}):
        plain_meta_of = frames[1] if not options else _plain_part(frames[1])
        if len(plain_targets) >= _MAX_PLAIN_TARGETS:
            plain_targets.clear()
        if plain_meta_of:
            plain_targets[plain_meta_of] = target
    return Call(
        head.call_id, head.flags, head.time_ms, *target, _texts(deps, "deps", MAX_DEPS), options, frames[2:], needed
    )


def _parse_hello(head: Header, frames: Sequence[Frame]) -> Hello:
    meta = _meta(frames)
    client_id = meta.get("client") if isinstance(meta, dict) else None
    if not isinstance(client_id, bytes) or len(client_id) != CLIENT_ID_BYTES:
        raise RemoteProtocolError("HELLO without a client id")
    secret = meta.get("resume")
    if secret is not None and (not isinstance(secret, bytes) or len(secret) > MAX_SECRET_BYTES):
        raise RemoteProtocolError(f"resume of HELLO is no secret of at most {MAX_SECRET_BYTES} bytes")
    return Hello(head.call_id, client_id, meta)
