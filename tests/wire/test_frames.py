"""The wire: whatever arrives is a message or a `RemoteProtocolError`, and what we send is what arrives."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmqagents import errors
from zmqagents.codec import pack, unpack
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import (
    Ack,
    Call,
    Cancel,
    Code,
    Credit,
    Fetch,
    Flag,
    Frame,
    Hello,
    Kind,
    Ping,
    Place,
    Reply,
    Waits,
)  # fmt: skip

FROM_CLIENTS = [
    Kind.HELLO, Kind.CALL, Kind.FETCH, Kind.CANCEL, Kind.PING, Kind.BYE, Kind.CREDIT, Kind.ACK, Kind.WAITS,
]  # fmt: skip
ID = b"0123456789"

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
call_ids = st.integers(1, 2**64 - 1)
texts = st.text(max_size=messages.MAX_TEXT)
bodies = st.lists(st.binary(max_size=50), min_size=1, max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=300) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=10,
)


def message(kind: int, *rest: bytes, call_id: int = 1, **fields: int) -> list[bytes]:
    return [messages.header(kind, call_id, **fields), *rest]


def parsed(parts: list[Any]) -> object:
    """The message, None for a `RemoteProtocolError`; anything else is a failure of the test."""
    try:
        return messages.parse_client(parts)
    except errors.RemoteProtocolError:
        return None


# ---------------------------------------------------------------- whatever arrives


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_random_frames_are_a_message_or_a_protocol_error(parts: list[bytes]) -> None:
    parsed(parts)


@given(u8, u16, u64, u32, st.lists(st.binary(max_size=60) | plain.map(pack), max_size=4))
@example(Kind.CALL, 0, 1, 0, [pack(["a", "m", ["x"] * 5000, None]), b""])
@example(Kind.CALL, 0, 1, 0, [pack(["a", "m", None, {"chain": [1]}]), b""])
@example(Kind.CALL, 0, 1, 0, [b"\x94\xa1a\xa1m\xc0\x81\x91\x01\x02", b""])  # a map whose key is a list
@example(Kind.CALL, 0, 1, 0, [b"\xdd\xff\xff\xff\xff", b""])  # a list that says it is long
@example(Kind.HELLO, 0, 1, 0, [pack([1])])
@example(Kind.FETCH, 0, 1, 0, [pack({})])
def test_a_good_header_before_random_frames_changes_nothing(
    kind: int, flags: int, call_id: int, time_ms: int, rest: list[bytes]
) -> None:
    parts = message(kind, *rest, call_id=call_id, flags=flags, time_ms=time_ms)
    as_bytes = parsed(parts)
    assert (parsed([memoryview(part) for part in parts]) is None) == (as_bytes is None)
    if kind not in FROM_CLIENTS:
        assert as_bytes is None


@given(st.sampled_from(FROM_CLIENTS), st.integers(0, 27), u8, st.data())
def test_a_message_with_one_byte_changed_is_a_message_or_a_protocol_error(
    kind: Kind, place: int, value: int, data: st.DataObject
) -> None:
    chosen: dict[Kind, list[Any]] = {
        Kind.CALL: messages.call_frames(1, 2, "a", "m", [b"p"], deps=["x-1"], options={"chain": ["y-1"]}),
        Kind.HELLO: message(kind, pack({"client": ID})), Kind.FETCH: message(kind, pack("x-1")),
    }  # fmt: skip
    parts = chosen.get(kind, message(kind))
    which = data.draw(st.integers(0, len(parts) - 1))
    changed = bytearray(parts[which])
    changed[place % len(changed)] = value
    parts[which] = bytes(changed)
    parsed(parts)


def test_nothing_is_not_a_message() -> None:
    with pytest.raises(errors.RemoteProtocolError, match="without a header"):
        messages.parse_client([])


@pytest.mark.parametrize("head", [b"", b"ZA", b"ZA" + bytes(25), b"ZA" + bytes(27)])
def test_a_header_has_28_bytes(head: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=f"header of {len(head)} bytes, expected 28"):
        messages.parse_header(head)


@pytest.mark.parametrize("start", [b"ZB\x01", b"ZA\x02", b"GET"])
def test_a_header_begins_with_the_name_and_the_version(start: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=r"not a ZA/1 header: b'"):
        messages.parse_header(start + bytes(25))


@pytest.mark.parametrize(("kind", "counts"), [
    (Kind.HELLO, {2}), (Kind.CALL, set(range(3, messages.MAX_FRAMES + 1))), (Kind.FETCH, {2}), (Kind.CANCEL, {1, 2}),
    (Kind.PING, {1}), (Kind.BYE, {1}), (Kind.CREDIT, {1}),
    (Kind.ACK, {1, 2}), (Kind.WAITS, {1, 2}),
])  # fmt: skip
def test_each_kind_has_as_many_frames_as_the_table_says(kind: Kind, counts: set[int]) -> None:
    second = {
        Kind.CALL: pack(["a", "m", None, None]), Kind.HELLO: pack({"client": ID}), Kind.ACK: pack([7]),
        Kind.WAITS: pack(["x-1", ["x-2"], False, -1, None]),
    }.get(kind, pack("x-1"))  # fmt: skip
    for count in range(1, messages.MAX_FRAMES + 3):
        parts = message(kind, *[second] * (count - 1))
        assert (parsed(parts) is not None) == (count in counts), count


@pytest.mark.parametrize("kind", [0, 10, 64, 65, 66, 72, 255])
def test_a_kind_that_clients_do_not_send_is_named(kind: int) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=f"unknown kind {kind}"):
        messages.parse_client(message(kind))


def call_with(*meta: Any, call_id: int = 1) -> list[bytes]:
    return message(Kind.CALL, pack(list(meta)), b"payload", call_id=call_id)


LONG = "x" * (messages.MAX_TEXT + 1)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (call_with("a", "m", None, None, call_id=0), "CALL with id 0"),
        (call_with("a", "m", None), r"CALL takes \[agent, method, deps, options\]"),
        (message(Kind.CALL, pack("text"), b""), r"CALL takes \[agent, method, deps, options\]"),
        (call_with(7, "m", None, None), "agent id is not a text of at most 255"),
        (call_with("a", LONG, None, None), "method name is not a text of at most 255"),
        (call_with("a", "m", "x-1", None), "deps of CALL is not a list of at most 4096"),
        (call_with("a", "m", ["x"] * 4097, None), "deps of CALL is not a list of at most 4096"),
        (call_with("a", "m", [7], None), "deps is not a text"),
        (call_with("a", "m", [LONG], None), "deps is not a text"),
        (call_with("a", "m", None, []), "options of CALL are not a map"),
        (call_with("a", "m", None, {"chain": "x-1"}), "chain of CALL is not a list of at most 256"),
        (call_with("a", "m", None, {"chain": ["x"] * 257}), "chain of CALL is not a list of at most 256"),
        (call_with("a", "m", None, {"chain": [None]}), "chain is not a text"),
        (call_with("a", "m", None, {"chain": [LONG]}), "chain is not a text"),
        (call_with("a", "m", None, {"far": ["x"]}), "far of CALL is not a map"),
        (call_with("a", "m", None, {"far": {1: ["s", "h:1"]}}), "task id is not a text"),
        (call_with("a", "m", None, {"far": {"x-1": ["s"]}}), r"far of CALL does not say \[server id, address\]"),
        (call_with("a", "m", None, {"far": {"x-1": ["s", LONG]}}), "address is not a text"),
        (message(Kind.FETCH, pack(7)), "task id is not a text"),
        (message(Kind.CANCEL, pack(LONG)), "task id is not a text"),
        (message(Kind.HELLO, pack({})), "HELLO without a client id"),
        (message(Kind.HELLO, pack({"client": ID[1:]})), "HELLO without a client id"),
        (message(Kind.HELLO, pack([ID])), "HELLO without a client id"),
        (message(Kind.CALL, bytes(messages.MAX_META_BYTES + 1), b""), "262,145 bytes, limit 262,144"),
    ],
)
def test_what_does_not_fit_is_told_in_words(parts: list[bytes], text: str) -> None:
    with pytest.raises(errors.RemoteProtocolError, match=text):
        messages.parse_client(parts)


def test_as_many_results_and_links_as_are_allowed_do_fit() -> None:
    task_id = messages.task_id_of("m" * 16, 2**64 - 1)
    parts = messages.call_frames(
        1,
        1,
        "a" * 255,
        "m" * 255,
        [b"p"],
        deps=[task_id] * messages.MAX_DEPS,
        options={"chain": [task_id] * messages.MAX_CHAIN},
    )
    call = messages.parse_client(parts)
    assert isinstance(call, Call)
    assert len(call.deps) == messages.MAX_DEPS
    assert len(call.options["chain"]) == messages.MAX_CHAIN


# ---------------------------------------------------------------- what we send is what arrives


@given(u8, u16, u16, u64, u64, u32)
def test_a_header_arrives_as_it_was_sent(
    kind: int, flags: int, code: int, call_id: int, token: int, time_ms: int
) -> None:
    head = messages.parse_header(messages.header(kind, call_id, token, flags=flags, code=code, time_ms=time_ms))
    assert head == (b"ZA", 1, kind, flags, code, call_id, token, time_ms)


@given(
    call_ids,
    u64,
    texts,
    texts,
    bodies,
    u16,
    st.none() | st.floats(0.001, 4e6),
    st.lists(texts, max_size=5),
    st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("chain", "far")), plain, max_size=3),
    st.none() | st.lists(texts, max_size=5),
)
def test_a_call_arrives_as_it_was_sent(
    call_id: int, token: int, agent: str, method: str, body: list[bytes], flags: int, timeout: float | None,
    deps: list[str], options: dict[str, Any], chain: list[str] | None,
) -> None:  # fmt: skip
    if chain is not None:
        options = {**options, "chain": chain}
    parts = messages.call_frames(
        call_id, token, agent, method, body, flags=flags, timeout_s=timeout, deps=deps, options=options
    )
    call = messages.parse_client(parts)
    assert isinstance(call, Call)
    assert messages.parse_header(parts[0]).token == token
    said = flags | (Flag.BYTES if len(body) > 1 else 0)
    assert (call.call_id, call.flags, call.agent, call.method) == (call_id, said, agent, method)
    assert (list(call.deps), list(call.body)) == (deps, body)
    assert pack(call.options) == pack(options)  # as bytes: a nan is not equal to itself
    assert call.time_ms == (0 if timeout is None else int(timeout * 1000))


@given(
    call_ids, texts, u32, st.binary(min_size=10, max_size=10), st.dictionaries(st.text(max_size=5), plain, max_size=3)
)
def test_the_other_messages_arrive_as_they_were_sent(
    call_id: int, task_id: str, time_ms: int, client_id: bytes, options: dict[str, Any]
) -> None:
    options = {**options, "client": client_id}
    hello = messages.parse_client(message(Kind.HELLO, pack(options), call_id=call_id))
    assert isinstance(hello, Hello)
    assert (hello.call_id, hello.client_id, pack(hello.options)) == (call_id, client_id, pack(options))
    for parts, expected in (
        (message(Kind.FETCH, pack(task_id), call_id=call_id, time_ms=time_ms), Fetch(call_id, task_id, time_ms)),
        (message(Kind.CANCEL, call_id=call_id), Cancel(call_id, "")),
        (message(Kind.CANCEL, pack(task_id), call_id=call_id), Cancel(call_id, task_id)),
        (message(Kind.CANCEL, call_id=call_id, flags=Flag.ALONE), Cancel(call_id, "", True)),
        (message(Kind.PING, call_id=call_id), Ping(call_id)),
        (message(Kind.CREDIT, call_id=call_id, time_ms=time_ms), Credit(call_id, time_ms)),
        (message(Kind.ACK, call_id=call_id), Ack(call_id)),
        (message(Kind.WAITS, call_id=call_id), Waits(call_id)),
        (
            message(Kind.WAITS, pack([task_id, [task_id], True, 3, None]), call_id=call_id),
            Waits(call_id, task_id, [task_id], True, 3),
        ),
        (
            message(Kind.WAITS, pack([task_id, [], False, -1, [9, 8, 7]]), call_id=call_id),
            Waits(call_id, task_id, [], False, -1, Place(9, 8, 7)),
        ),
        (message(Kind.BYE, call_id=call_id), ()),
    ):
        assert messages.parse_client(parts) == expected


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        ["x-1", [], False, -1],
        ["x-1", "x-2", False, -1, None],
        [1, [], False, -1, None],
        ["x-1", [], False, "all", None],
        ["x-1", [], False, -1, 5],
        ["x-1", [], False, -1, [1, 2]],
        ["x-1", [], False, -1, [1, 2, -3]],
        ["x-1", [], False, -1, [1, 2, True]],
    ],
)
def test_a_wait_that_is_none_is_a_protocol_error(meta: Any) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        messages.parse_client(message(Kind.WAITS, pack(meta)))


def test_payload_and_buffers_go_through_without_a_copy() -> None:
    payload, buffer = b"p" * (messages.JOIN_BYTES + 1), memoryview(bytearray(1_000_000))
    parts = messages.call_frames(1, 1, "a", "m", [payload, buffer])
    call = messages.parse_client(parts)
    assert isinstance(call, Call)
    assert call.body[0] is payload
    assert call.body[1] is buffer


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"deps": ["x"] * (messages.MAX_DEPS + 1)}, "4097 results among the arguments, limit 4096"),
        ({"body": [b""] * 71}, "73 frames, limit 72"),
        ({"options": {"big": "x" * messages.MAX_META_BYTES}}, "bytes beside the arguments, limit 262144"),
    ],
)
def test_what_the_broker_would_drop_is_not_sent(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.MessageTooLarge, match=text) as caught:
        messages.call_frames(1, 1, "a", "m", **{"body": [b"p"], **arguments})
    assert caught.value.size > caught.value.limit > 0


@pytest.mark.parametrize(
    ("seconds", "time_ms"),
    [
        (None, 0),
        (0.0, 1),
        (-5.0, 1),
        (0.0001, 1),
        (1.5, 1500),
        (1e12, messages.MAX_TIME_MS),
        (float("inf"), messages.MAX_TIME_MS),
    ],
)
def test_a_time_fits_into_a_header_and_is_never_taken_for_none(seconds: float | None, time_ms: int) -> None:
    assert messages.to_time_ms(seconds) == time_ms
    assert messages.parse_header(messages.header(Kind.CALL, time_ms=time_ms)).time_ms == time_ms


def test_flags_do_not_overlap_and_fit() -> None:
    flags = [value for name, value in vars(Flag).items() if name.isupper()]
    assert len(flags) == 12
    assert all(flag.bit_count() == 1 for flag in flags)
    assert sum(set(flags)) == sum(flags) < 2**16


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10), call_ids, call_ids)
def test_task_ids_differ_where_client_or_call_do(one: bytes, other: bytes, first: int, second: int) -> None:
    ids = (
        messages.task_id_of(messages.client_prefix(one), first),
        messages.task_id_of(messages.client_prefix(other), second),
    )
    assert (ids[0] == ids[1]) == ((one, first) == (other, second))
    assert re.fullmatch(r"[a-z2-7]{16}-[0-9]{1,20}", ids[0])


# ---------------------------------------------------------------- replies as the store keeps them


@given(u8, bodies)
def test_a_reply_comes_back_from_the_store_as_it_was(code: int, body: list[bytes]) -> None:
    data = messages.reply_to_bytes(Reply(code, [memoryview(frame) for frame in body]))
    assert messages.reply_from_bytes(data) == Reply(code, tuple(body))


def store_reply(data: bytes) -> Reply | None:
    try:
        return messages.reply_from_bytes(data)
    except errors.RemoteProtocolError:
        return None


@given(st.binary(max_size=100))
@example(b"")
@example(struct.pack(">BI", 0, 0))
@example(struct.pack(">BI", 0, 2**32 - 1))
@example(struct.pack(">BIQ", 0, 1, 2**64 - 1))
@example(struct.pack(">BIQQ", 0, 2, 2**64 - 1, 1))
def test_random_bytes_from_the_store_are_a_reply_or_a_protocol_error(data: bytes) -> None:
    reply = store_reply(data)
    if reply is not None:
        assert messages.reply_to_bytes(reply) == data
        assert 1 <= len(reply.body) <= messages.MAX_FRAMES


@given(u8, bodies, st.data())
def test_a_reply_that_was_cut_short_or_grew_is_refused(code: int, body: list[bytes], data: st.DataObject) -> None:
    stored = messages.reply_to_bytes(Reply(code, body))
    assert store_reply(stored[: data.draw(st.integers(0, len(stored) - 1))]) is None
    assert store_reply(stored + b"x") is None


def test_the_hosts_own_refusal_arrives_as_the_class_it_is_without_a_traceback() -> None:
    refusal = errors.HostBusy("full")
    refusal.retry_after = 2.5
    reply = messages.error_reply(refusal, agent="a", method="m", call_id="x-1")
    assert reply.code == Code.HOST_ERROR
    error = rebuild_error(reply)
    assert type(error) is errors.HostBusy
    assert (str(error), error.agent, error.method, error.call_id, error.retry_after) == ("full", "a", "m", "x-1", 2.5)
    assert "traceback" not in unpack(reply.body[0])


# ---------------------------------------------------------------- the table at the top of the module


def table() -> list[tuple[int, str, str]]:
    rows = re.findall(r"^ {4,5}(\d+) ([A-Z_]+) +(client|broker) ", messages.__doc__ or "", re.MULTILINE)
    return [(int(number), name, sender) for number, name, sender in rows]


def test_the_table_lists_every_kind_and_who_sends_it() -> None:
    assert {name: number for number, name, _ in table()} == {kind.name: kind.value for kind in Kind}
    assert [name for _, name, sender in table() if sender == "client"] == [kind.name for kind in FROM_CLIENTS]


def test_the_header_is_what_the_table_says() -> None:
    doc = messages.__doc__ or ""
    match = re.search(r'header, (\d+) bytes, big endian \(struct "([^"]+)"\)', doc)
    assert match is not None
    assert struct.calcsize(match[2]) == int(match[1]) == len(messages.header(Kind.PING))
    assert struct.pack(match[2], b"ZA", 1, 2, 3, 4, 5, 6, 7) == messages.header(2, 5, 6, flags=3, code=4, time_ms=7)
    fields = re.findall(r"(\w+) u(\d+)", doc.split("kind  ")[0])
    sizes = {"B": 8, "H": 16, "I": 32, "Q": 64}
    assert [int(bits) for _, bits in fields] == [sizes[letter] for letter in match[2][3:]]
    assert [name for name, _ in fields] == list(messages.Header._fields[1:])


@pytest.mark.parametrize("flag", ["DETACHED", "ATTRIBUTE", "STREAM", "ALONE", "RESENT", "RESUMED", "IDEMPOTENT"])
def test_the_table_gives_the_bits_of_the_flags(flag: str) -> None:
    assert re.search(rf"\b{getattr(Flag, flag)} {flag}\b", messages.__doc__ or "")


def test_every_management_request_has_a_name_of_its_own() -> None:
    names = [value for key, value in vars(messages.Op).items() if key.isupper()]
    assert len(names) == len(set(names)) > 10


@pytest.mark.parametrize("parse", [messages.parse_header, lambda head: messages.parse_client([head])])
def test_the_version_is_the_first_thing_that_is_looked_at(parse: Callable[[bytes], object]) -> None:
    newer = bytearray(messages.header(99))
    newer[2] = 2
    with pytest.raises(errors.RemoteProtocolError, match="not a ZA/1 header"):
        parse(bytes(newer))


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_call_says_which_replies_its_client_still_needs_if_that_is_not_too_far_back(call_id: int, back: int) -> None:
    needed = max(0, call_id - back)
    parts = messages.call_frames(call_id, 1, "agent", "method", (b"",), needed=needed)
    call = messages.parse_client([bytes(part) for part in parts])
    assert isinstance(call, messages.Call)
    assert call.needed == (needed if needed and call_id - needed < 0xFFFF else 0)


# ---------------------------------------------------------------- what is short goes in one frame

BODY = b"p" * (messages.JOIN_BYTES + 1)


@pytest.mark.parametrize("body", [[BODY[:-1]], [BODY], [b"p", b"buffer"], [b""]])
def test_a_call_is_the_same_in_one_frame_or_more(body: list[bytes]) -> None:
    parts = messages.call_frames(7, 5, "a", "m", body, deps=["x-1"], needed=3)
    assert (len(parts) == len(body)) == (len(body[0]) <= messages.JOIN_BYTES)
    flags = messages.Flag.BYTES if len(body) > 1 else 0
    head = messages.header(Kind.CALL, 7, 5, flags=flags, code=5)
    apart = messages.parse_client([head, pack(["a", "m", ["x-1"], None]), *body])
    call = messages.parse_client(parts)
    assert isinstance(call, messages.Call)
    assert isinstance(apart, messages.Call)
    assert call._replace(body=body) == apart._replace(body=body)
    assert [bytes(frame) for frame in call.body] == body


@pytest.mark.parametrize("body", [[BODY[:-1]], [BODY], [b"p", b"buffer"], [b"p", BODY], []])
def test_an_answer_is_the_same_in_one_frame_or_more(body: list[bytes]) -> None:
    parts = messages.answer_frames(Kind.RESULT, 7, 5, body)
    assert len(parts) == len(body) + 1 - (bool(body) and len(body[0]) <= messages.JOIN_BYTES)
    for form in (parts, [messages.header(Kind.RESULT, 7, 5), *body]):
        head, said = messages.split_answer(form)
        assert (head.kind, head.call_id, head.token) == (Kind.RESULT, 7, 5)
        assert list(said) == body


def test_a_call_in_one_frame_that_is_cut_is_refused() -> None:
    (whole,) = messages.call_frames(7, 5, "a", "m", [b""])
    for end in range(messages.HEADER_BYTES + 1, len(whole)):
        with pytest.raises(errors.RemoteProtocolError):
            messages.parse_client([whole[:end]])


def test_a_call_has_no_more_frames_if_its_first_three_came_as_one() -> None:
    (whole,) = messages.call_frames(7, 5, "a", "m", [b""])
    most = [whole, *[b"buffer"] * (messages.MAX_FRAMES - 3)]
    assert len(messages.parse_client(most).body) == messages.MAX_FRAMES - 2  # type: ignore[union-attr]
    with pytest.raises(errors.RemoteProtocolError, match="73 frames"):
        messages.parse_client([*most, b"buffer"])


SHORT_MEMORY = memoryview(bytes(messages.COPIED_BYTES))
LONG_MEMORY = memoryview(bytes(messages.COPIED_BYTES + 1))


@pytest.mark.parametrize("buffers", [[b"bytes"], [b"bytes", LONG_MEMORY], [LONG_MEMORY], [SHORT_MEMORY, b"bytes"], []])
def test_a_message_says_whether_its_buffers_are_best_received_as_bytes(buffers: list[Frame]) -> None:
    all_bytes = bool(buffers) and LONG_MEMORY not in buffers
    for payload in (b"short", bytes(messages.JOIN_BYTES + 1)):
        call = messages.call_frames(7, 5, "a", "m", [payload, *buffers])
        answer = messages.answer_frames(Kind.RESULT, 7, 5, [payload, *buffers])
        assert messages.want_bytes(call[0]) == messages.want_bytes(answer[0]) == all_bytes


def test_the_agents_and_methods_that_are_remembered_are_bounded() -> None:
    most = 0
    for number in range(10_000):
        parts = messages.call_frames(1, 5, f"agent-{number}", "m", [b"p"])
        assert messages.parse_client(parts).agent == f"agent-{number}"  # type: ignore[union-attr]
        most = max(most, len(messages.plain_targets))
    assert 1_000 < most <= 8_192
    assert messages.parse_client(parts) == messages.parse_client(parts)


def passed_on(meta: bytes) -> bytes:
    """A CALL with this list."""
    frame = messages.call_frame(9, 77, meta, b"payload", 0, None, 4)
    assert isinstance(frame, bytes)
    return frame


names = st.text(min_size=1, max_size=40) | st.sampled_from(["task", "\u0924task", "user", "a", "uid:0"])


@given(names, names, names, names | st.text(max_size=99) | st.integers(1, 10**9).map("qnyzym25iflgjver-{}".format),
       st.binary(max_size=99))  # fmt: skip
@example("a", "\u0924task", "\u0924task", "\u0924task", b"")
@example("a", "m", "u", "t" * 31, b"\xa0")
@example("a", "m", "u", "t" * 32, b"\xff")
@example("a", "m", "u", "t" * 56, b"")  # as long as the byte that says so would be as a short text's
@example("a", "m", "u", "t", b"\xc0" + bytes(32))
@example("a", "m", "u", "t", b"\xc4\x21" + bytes(33))
@example("a", "m", "u", "t", b"\xe0" + bytes(64))
def test_a_call_that_is_passed_on_is_read_as_by_the_general_way_or_not_at_all(
    agent: str, method: str, user: str, task_id: str, rest: bytes
) -> None:
    meta = messages.passed_on_meta(agent, method, user, task_id)
    assert meta == pack([agent, method, None, {"user": user, "task": task_id}])
    read = messages.parse_client([passed_on(meta)])
    for _ in range(2):  # the second time its beginning is known
        assert messages.parse_short_call([passed_on(meta)]) == (77, read, False)
    start = len(meta) - len(pack(task_id))
    for end in (
        rest,
        meta[start:] + rest,
        meta[start:-1],
        meta[start : start + 1] + rest,
        bytes([0xA0 + len(rest)]) + rest,
    ):
        other = passed_on(meta[:start] + end)
        short = messages.parse_short_call([other])
        try:
            general = messages.parse_client([other])
        except errors.RemoteProtocolError:
            assert short is None
        else:
            assert short in (None, (77, general, False))


def test_the_calls_that_are_passed_on_and_remembered_are_bounded() -> None:
    most = 0
    for number in range(10_000):
        meta = messages.passed_on_meta(f"agent-{number}", "m", "u", "t")
        assert messages.parse_short_call([passed_on(meta)]) is not None
        most = max(most, len(messages.passed_on_targets))
    assert 1_000 < most <= 8_192
    long_user = messages.passed_on_meta("a", "m", "u" * 1_000, "t")
    before = len(messages.passed_on_targets)
    assert messages.parse_short_call([passed_on(long_user)]) is not None
    assert len(messages.passed_on_targets) == before


ROUNDING_S = 1e-6  # of floats


@given(st.floats(0, 1e7), st.floats(-1e5, 1e6))
def test_a_deadline_as_a_time_is_what_is_left_of_it_for_who_reads_the_same_clock(now: float, left_s: float) -> None:
    deadline = max(0.002, now + left_s)
    read = now + messages.left_s(messages.to_until_ms(deadline), now)
    assert deadline - 0.001 - ROUNDING_S <= read <= deadline + ROUNDING_S, "it may only be rounded down"


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.binary(max_size=50))
def test_a_call_that_may_be_over_since_it_was_sent_is_marked(time_ms: int, late_s: float, rest: bytes) -> None:
    for flags in (Flag.DETACHED, Flag.DETACHED | Flag.UNTIL):
        frame = messages.header(Kind.CALL, 7, 9, flags=flags, time_ms=time_ms) + rest
        doubted = messages.doubted(frame, late_s, 1000.0)
        if flags & Flag.UNTIL or not 0 < time_ms <= late_s * 1000:
            assert doubted == frame
            continue
        head = messages.parse_header(doubted)
        assert (head.call_id, head.token, doubted[28:]) == (7, 9, rest)
        assert head.flags == Flag.DETACHED | Flag.UNTIL | Flag.LATE
        assert messages.left_s(head.time_ms, 1000.0) <= 0.002


def test_a_call_that_carries_its_trace_alone_is_read_as_a_short_one() -> None:
    options = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    meta = messages.traced_meta("traced", "m", options)
    assert meta == pack(["traced", "m", None, options])
    assert messages.traced_meta("traced", "m", {**options, "tracestate": "a=1"}) is None
    assert messages.traced_meta("traced", "m", {"traceparent": "short"}) is None
    frames = messages.call_frames(7, 3, "traced", "m", (b"body",), options=options, needed=7)
    assert messages.parse_short_call(frames) is None  # of an agent that has never been called
    read = messages.parse_client(frames)
    assert messages.parse_short_call(frames) == (3, read, True)
    assert isinstance(read, messages.Call)
    assert (read.agent, read.method, read.options, read.body) == ("traced", "m", options, (b"body",))
    plain = messages.call_frames(8, 3, "traced", "m", (b"body",), needed=8)
    assert messages.parse_short_call(plain) == (3, messages.parse_client(plain), True)
