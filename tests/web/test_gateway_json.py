"""Agents over plain JSON: a real host, a real web process, and requests as any program makes them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway_world import World, gateway, web_process
from hosts import eventually

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway() as world:
        yield world


def test_a_method_is_called_with_an_object_of_its_arguments(world: World) -> None:
    assert world.call("shop", "add", a=1) == (200, 2)
    assert world.call("shop", "add", a=1, b=5) == (200, 6)
    assert world.call("shop", "cancelled") == (200, 0)
    assert world.ask("POST", "/agents/shop/cancelled", raw=b"") == (200, 0)
    assert world.ask("POST", "/agents/other%20caller/post", {"url": "x"})[0] == 422


def test_values_that_json_has_not_arrive_as_the_method_takes_them(world: World) -> None:
    assert world.call("shop", "order", order={"item": "pen", "count": 2}, size="large") == (200, "Order: 2 pen, LARGE")
    assert world.call("shop", "moments", at="2026-01-02T03:04:05Z", data="aGk=") == (
        200, ["datetime", "2026-01-02T03:04:05+00:00", "bytes", "6869"],
    )  # fmt: skip
    for value in (None, True, 2**70, 1.5, "ü\ud800", [1, [2]], {"a": {"b": None}}):
        assert world.call("shop", "echo", value=value) == (200, value)


WRONG: list[tuple[str, Any, int, str]] = [
    ("shop/add", {}, 422, "'a' is a required property"), ("shop/add", {"a": "1"}, 422, "'1' is not of type 'integer'"),
    ("shop/add", {"a": 1, "c": 2}, 422, "'c' was unexpected"), ("shop/add", [1], 422, "is an object of JSON"),
    ("shop/moments", {"at": "yesterday"}, 422, "'yesterday' is no datetime"),
    ("shop/order", {"order": {"item": "pen", "colour": "red"}}, 422, "'colour' was unexpected"),
    ("shop/_private", {}, 404, "no method '_private' of an agent 'shop' is shown here"),
    ("shop/__init__", {}, 404, "no method"), ("shop/nothing", {}, 404, "no method"),
    ("hidden/add", {"a": 1, "b": 2}, 404, "no agent 'hidden' is shown here"),
    ("nobody/add", {}, 404, "no agent 'nobody' is shown here"), ("shop", {}, 404, "/agents/ID/METHOD"),
    ("shop/add/more", {}, 404, "/agents/ID/METHOD"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "text"), WRONG)
def test_what_is_wrong_is_told_in_words(world: World, path: str, body: Any, status: int, text: str) -> None:
    found, told = world.ask("POST", f"/agents/{path}", body)
    assert (found, text in json.dumps(told)) == (status, True), told


def test_a_body_that_is_no_json_is_refused(world: World) -> None:
    assert world.ask("POST", "/agents/shop/add", raw=b"{")[0] == 400
    assert world.ask("POST", "/agents/shop/add", raw=b"[" * 100_000)[0] == 400
    assert world.ask("POST", "/agents/shop/add", raw=b"a=1", content_type="text/plain")[0] == 415


def test_the_error_of_an_agent_is_told_without_its_traceback(world: World) -> None:
    status, told = world.call("shop", "fail")
    assert (status, told) == (
        500, {"error": {"type": "ValueError", "message": "no such thing", "agent": "shop", "method": "fail"}},
    )  # fmt: skip


def test_only_what_was_named_is_listed(world: World) -> None:
    status, agents = world.ask("GET", "/offers")
    assert status == 200
    assert [row["agent_id"] for row in agents] == ["caller", "listener", "other caller", "shop", "slow", "talker"]
    shop = next(row for row in agents if row["agent_id"] == "shop")
    assert shop["doc"] == "Sells things."
    assert "_private" not in shop["methods"]
    assert shop["methods"]["add"]["arguments"]["required"] == ["a"]
    assert world.ask("GET", "/offers/shop") == (200, shop)
    assert world.ask("GET", "/offers/hidden")[0] == 404


def test_an_agent_that_comes_or_goes_is_noticed_within_a_second_or_so(world: World) -> None:
    def listed() -> bool:
        return "late" in [row["agent_id"] for row in world.ask("GET", "/offers")[1]]

    world.client.create_agent("Shop", agent_id="late")
    assert eventually(listed, 20)
    assert world.call("late", "add", a=1) == (200, 2)
    world.client.delete_agent("late")
    assert eventually(lambda: not listed(), 20)
    assert world.call("late", "add", a=1)[0] == 404


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


def test_the_items_of_a_generator_are_events(world: World) -> None:
    status, text = world.call("shop", "ticks", count=3)
    assert (status, events(text)) == (200, [("", 0), ("", 1), ("", 2), ("end", {})])
    status, text = world.call("shop", "ticks", count=3, fail_at=1)
    assert status == 200
    assert events(text) == [
        ("", 0), ("error", {"type": "ValueError", "message": "no more", "agent": "shop", "method": "ticks"}),
    ]  # fmt: skip


def test_an_item_is_sent_before_the_next_one_is_made(world: World) -> None:
    with Hanging(world, "shop/ticks", {"count": 1000, "pause": 0.2}) as sock:
        found = b""
        while b"data: 0\n\n" not in found:
            found += sock.recv(4096)
        assert b"data: 9" not in found


class Hanging:
    """A request whose answer is not waited for; at the end of the block the connection is closed."""

    def __init__(self, world: World, path: str, body: Any) -> None:
        data = json.dumps(body).encode()
        self.sock = socket.create_connection(("127.0.0.1", world.port), 60)
        head = f"POST /agents/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {world.token}\r\n"
        self.sock.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    def __enter__(self) -> socket.socket:
        return self.sock

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


@pytest.mark.parametrize(("path", "body"), [("slow", {}), ("ticks", {"count": 100_000, "pause": 0.1})])
def test_who_hangs_up_cancels_the_call(world: World, path: str, body: dict[str, Any]) -> None:
    before, begun = world.call("shop", "cancelled")[1], world.call("shop", "begun")[1]
    with Hanging(world, f"shop/{path}", body):
        assert world.becomes("shop", "begun", begun + 1)  # what is cancelled before counts nothing
    assert world.becomes("shop", "cancelled", before + 1)
    assert world.client.get_call_list() == []


def test_who_hangs_up_in_a_fast_stream_leaves_no_line_in_the_log(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    with web_process(world.host_port, "--expose", "shop") as url:
        asked = dataclasses.replace(world, url=url)
        before = asked.call("shop", "cancelled")[1]
        for number in range(1, 4):
            with Hanging(asked, "shop/ticks", {"count": 10_000_000}) as sock:
                read = b""
                while b"data: 20\n" not in read:
                    read += sock.recv(100)  # the rest is not read, so that what is sent from now on is an error there
            assert asked.becomes("shop", "cancelled", before + number)
    assert capfd.readouterr().err == ""


def test_a_request_may_say_how_long_it_waits(world: World) -> None:
    status, told = world.ask("POST", "/agents/shop/slow", {"seconds": 30}, x_zmqagents_timeout="0.2")
    assert (status, told["error"]["type"]) == (504, "CallTimeout")
    assert world.ask("POST", "/agents/shop/slow", {}, x_zmqagents_timeout="soon")[0] == 422


def test_two_hundred_requests_at_once_are_all_answered_right(world: World) -> None:
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda n: world.call("shop", "add", a=n, b=n), range(200)))
    assert found == [(200, 2 * n) for n in range(200)]


def test_an_agent_that_calls_itself_over_http_is_told_of_the_deadlock(world: World) -> None:
    url, token = f"{world.url}/agents/caller", world.token
    inner: dict[str, Any] = {"url": f"{world.url}/agents/shop/add", "token": token, "body": {"a": 1}}
    for method in ("post", "post_later"):
        assert world.call("caller", method, **inner) == (200, [200, 2])
        status, (told, answer) = world.call("caller", method, url=f"{url}/{method}", token=token, body=inner)
        assert (status, told, answer["error"]["type"]) == (200, 508, "DeadlockError")
        assert "caller" in answer["error"]["message"]


def test_a_longer_way_back_over_http_is_a_deadlock_as_well(world: World) -> None:
    home = f"{world.url}/agents"
    inner = {"url": f"{home}/shop/add", "token": world.token, "body": {"a": 1}}
    back = {"url": f"{home}/caller/post", "token": world.token, "body": inner}
    there = {"url": f"{home}/other%20caller/post", "token": world.token, "body": back}
    status, (first, (second, answer)) = world.call("caller", "post", **there)
    assert (status, first, second, answer["error"]["type"]) == (200, 200, 508, "DeadlockError")


def test_a_chain_that_nobody_has_sealed_changes_nothing(world: World) -> None:
    assert world.ask("POST", "/agents/shop/add", {"a": 1}, x_zmqagents_chain="a,b!c,d") == (200, 2)
    assert world.ask("POST", "/agents/shop/add", {"a": 1}, x_zmqagents_chain="x" * 300)[0] == 422


def test_a_body_of_ten_megabytes_is_refused_unless_it_is_allowed(world: World) -> None:
    body = json.dumps({"text": "x" * 10_000_000}).encode()
    status, told = world.ask("POST", "/agents/shop/size", raw=body)
    assert (status, "at most 4,194,304 bytes" in told["error"]["message"]) == (413, True)
    with web_process(world.host_port, "--max-body-mb", "16") as url:
        other = World(world.launcher, world.client, url, world.token)
        assert other.ask("POST", "/agents/shop/size", raw=body) == (200, 10_000_000)


def test_a_body_without_a_length_is_counted(world: World) -> None:
    def chunked(count: int) -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(count):
            yield b"x" * 100_000
        yield b'"}'

    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=60)
    headers = {**world.bearer, "content-type": "application/json"}
    try:
        connection.request("POST", "/agents/shop/size", chunked(3), headers, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"300000")
    finally:
        connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=60)
    try:
        connection.request("POST", "/agents/shop/size", chunked(43), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # it was refused, and the rest not read
        pass
    finally:
        connection.close()


def test_a_host_that_is_gone_is_told_and_found_again(world: World) -> None:
    with web_process(1) as url:
        lone = World(world.launcher, world.client, url, world.token)
        assert lone.ask("GET", "/offers")[0] == 502
