"""The store thread by itself, without a host: what it promises while Redis fails."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from hosts import eventually, meanwhile
from redis_server import NO_SERVER, RedisServer, running_redis
from zmqagents import codec, errors
from zmqagents.config import BrokerConfig
from zmqagents.store import SharedStore, State, StoreLimits, open_store, write_behind
from zmqagents.store.write_behind import Question, WriteBehind
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Reply

pytestmark = pytest.mark.program


def reply(size: int = 10, fill: bytes = b"x") -> Reply:
    return Reply(0, (fill * size,))


@contextlib.contextmanager
def a_writer(server: RedisServer, namespace: str, server_id: str = "host-1", **limits: Any) -> Iterator[WriteBehind]:
    url = f"{server.tcp_url}?socket_timeout=1"
    config = BrokerConfig(server_id=server_id, redis_namespace=namespace)
    store = open_store("redis", StoreLimits(**limits), url=url, namespace=namespace, owner=f"{server_id}/1")
    assert isinstance(store, SharedStore)
    made = WriteBehind(store, config, lambda full: None)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def server(shared_redis: RedisServer | None) -> RedisServer:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    return shared_redis


class Asked:
    """A question and its one answer."""

    def __init__(
        self, writer: WriteBehind, task_id: str, timeout_s: float | None = None, patience_s: float = 0.0
    ) -> None:
        self.answers: queue.SimpleQueue[tuple[State | None, Reply | None]] = queue.SimpleQueue()
        self.over = False
        until = None if timeout_s is None else time.monotonic() + timeout_s
        writer.look_up(
            Question(
                task_id, lambda state, found: self.answers.put((state, found)),
                until=until, patience_s=patience_s, is_over=lambda: self.over,
            )
        )  # fmt: skip

    def answer(self) -> tuple[State | None, Any]:
        """The state, and the body or the error."""
        state, found = self.answers.get(timeout=30)
        if found is None:
            return state, None
        return state, type(rebuild_error(found)) if found.code else bytes(found.body[0])

    def is_open(self) -> bool:
        return self.answers.empty()


def test_what_is_kept_is_found_at_once_and_from_another_host_soon(server: RedisServer) -> None:
    with a_writer(server, "found") as one, a_writer(server, "found", "host-2") as other:
        one.begin(("t",))
        asked = Asked(other, "t", patience_s=5)
        one.keep(("t", reply(3)))
        assert Asked(one, "t").answer() == (State.DONE, b"xxx")
        assert asked.answer() == (State.DONE, b"xxx")
        assert eventually(lambda: one.figures()["unwritten"] == 0, 5)
        assert Asked(one, "t").answer() == (State.DONE, b"xxx")
        assert eventually(lambda: other.shares_with("host-1") and not other.shares_with("host-3"), 5)


def test_a_question_waits_as_long_as_it_may_and_no_longer(server: RedisServer) -> None:
    with a_writer(server, "waits") as one, a_writer(server, "waits", "host-2") as other:
        one.begin(("t",))
        assert eventually(lambda: Asked(other, "t", 0.0).answer()[0] is State.PENDING, 5), "word of it has come"
        start = time.monotonic()
        assert Asked(other, "t", 0.3).answer() == (State.PENDING, None)
        assert 0.25 < time.monotonic() - start < 3
        start = time.monotonic()
        assert Asked(other, "nobody", None, 0.3).answer() == (State.UNKNOWN, errors.UnknownTask)
        assert 0.25 < time.monotonic() - start < 3
        assert Asked(other, "nobody", 0.0, 5).answer() == (State.UNKNOWN, errors.UnknownTask)
        patient, gone = Asked(other, "t"), Asked(other, "t")
        gone.over = True
        one.keep(("t", reply(1)))
        assert patient.answer() == (State.DONE, b"x")
        assert gone.is_open()


def test_a_question_about_a_task_that_nobody_has_begun_writes_nothing_into_the_store(server: RedisServer) -> None:
    with a_writer(server, "unknown") as one, redis.Redis.from_url(server.url) as look:
        asked = [Asked(one, f"made-up-{number}", patience_s=0.3) for number in range(500)]
        assert {question.answer() for question in asked} == {(State.UNKNOWN, errors.UnknownTask)}
        assert list(look.scan_iter("za:{unknown}:w:*")) == []


def test_a_question_that_comes_before_its_task_is_answered_soon_after_its_end(server: RedisServer) -> None:
    with a_writer(server, "early") as one, a_writer(server, "early", "host-2") as other:
        asked = Asked(other, "t", patience_s=5)
        assert not asked.answers.qsize()
        one.begin(("t",))
        start = time.monotonic()
        one.keep(("t", reply(2)))
        assert asked.answer() == (State.DONE, b"xx")
        assert time.monotonic() - start < 3


@contextlib.contextmanager
def slow(server: RedisServer, command_s: float) -> Iterator[None]:
    """Meanwhile every command waits for a script of somebody else's."""
    busy = "local function now() local t = redis.call('TIME') return t[1] + t[2] / 1e6 end "
    busy += "local till = now() + ARGV[1] while now() < till do end"

    def go_on(is_over: threading.Event) -> None:
        with server.client as redis:
            while not is_over.is_set():
                redis.eval(busy, 0, str(command_s))

    with meanwhile(go_on):
        yield


def test_a_task_whose_begin_is_on_its_way_to_a_slow_store_is_not_unknown() -> None:
    """The other host may be amid an exchange, and then writes in the next one."""
    with (
        running_redis() as server, a_writer(server, "slow") as one, a_writer(server, "slow", "host-2") as other,
        slow(server, 0.25),
    ):  # fmt: skip
        tasks = [f"t-{number}" for number in range(8)]
        asked = []
        for task_id in tasks:
            one.begin((task_id,))
            asked.append(Asked(other, task_id, patience_s=0.3))
            time.sleep(0.1)  # so that they come at all moments of an exchange
        for task_id in tasks:
            one.keep((task_id, reply(1)))
        assert [each.answer() for each in asked] == [(State.DONE, b"x")] * len(tasks)
        assert Asked(other, "nobody", patience_s=0.3).answer() == (State.UNKNOWN, errors.UnknownTask)


def test_a_task_that_a_store_has_forgotten_is_not_unknown_before_its_host_could_tell_it_again() -> None:
    with running_redis() as server, a_writer(server, "n") as one, a_writer(server, "n", "host-2") as other:
        for number in range(5):
            task_id = f"t-{number}"
            one.begin((task_id,))
            asked = Asked(other, task_id, patience_s=0.1)
            assert eventually(lambda task_id=task_id: Asked(other, task_id, 0.0).answer()[0] is State.PENDING, 20)  # type: ignore[misc]
            with server.client as redis:
                redis.flushall()
            again = Asked(other, task_id, patience_s=0.1)  # it sees nothing of what was before
            one.keep((task_id, reply(1)))
            assert asked.answer() == (State.DONE, b"x")
            assert again.answer()[0] in (State.DONE, State.UNKNOWN)


def test_a_value_that_is_no_reply_is_an_error_and_not_the_end(server: RedisServer) -> None:
    with a_writer(server, "odd") as one, open_store("redis", StoreLimits(), url=server.url, namespace="odd") as store:
        store.put("t", b"what is this?")
        assert Asked(one, "t").answer() == (State.DONE, errors.RemoteProtocolError)
        one.keep(("u", reply(1)))
        assert Asked(one, "u").answer() == (State.DONE, b"x")


def test_a_result_that_is_too_large_for_the_store_has_expired_for_others(server: RedisServer) -> None:
    with a_writer(server, "large", max_bytes=2000) as one:
        one.keep(("t", reply(5000)))
        assert eventually(lambda: Asked(one, "t").answer() == (State.EXPIRED, errors.ResultExpired), 5)


def test_a_short_call_is_written_once(server: RedisServer) -> None:
    """Its begin is dropped when its result comes before it was written: half the work for the store."""
    with a_writer(server, "short") as one, server.client as redis:
        before = redis.info("commandstats")
        for number in range(2000):
            one.begin((f"t-{number}",))
            one.keep((f"t-{number}", reply()))
        assert eventually(lambda: one.figures()["unwritten"] == 0, 10)
        after = redis.info("commandstats")

        def calls(name: str) -> int:
            return int(after.get(name, {"calls": 0})["calls"]) - int(before.get(name, {"calls": 0})["calls"])

        assert calls("cmdstat_set") == 2000
        assert calls("cmdstat_sadd") < 500
        assert calls("cmdstat_evalsha") < 500, "many in one exchange"


def test_what_waits_in_memory_for_redis_is_bounded_and_what_was_given_up_has_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_behind, "MAX_UNWRITTEN_BYTES", 1_000_000)
    with running_redis() as server, a_writer(server, "n") as one:
        one.begin(("t-0",))
        assert eventually(lambda: one.figures()["round_trip_ms"] > 0 and " 0 begun" in repr(one), 5)
        server.stop()
        for number in range(10):
            one.keep((f"t-{number}", reply(300_000, b"%d" % number)))
        assert eventually(lambda: one.figures()["state"] == "down", 5)
        told = one.figures()
        assert (told["unwritten"], told["given_up"]) == (3, 7)
        assert told["unwritten_bytes"] <= 1_000_000
        assert Asked(one, "t-9").answer()[0] is State.DONE, "the latest are there"
        start = time.monotonic()
        assert Asked(one, "t-0").answer() == (None, errors.StoreUnavailable)
        assert time.monotonic() - start < 0.2, "it is not asked for again and again"
        server.start()
        assert eventually(lambda: (one.figures()["state"], one.figures()["unwritten"]) == ("up", 0), 5)
        outcomes = [Asked(one, f"t-{number}").answer() for number in range(10)]
        assert outcomes[:7] == [(State.EXPIRED, errors.ResultExpired)] * 7
        assert outcomes[7:] == [(State.DONE, b"%d" % number * 300_000) for number in (7, 8, 9)]


def test_calls_that_a_restarted_redis_has_forgotten_are_pending_again() -> None:
    with running_redis() as server, a_writer(server, "n") as one, a_writer(server, "n", "host-2") as other:
        for attempt in range(20):
            task = f"t-{attempt}"
            one.begin((task,))
            asked = Asked(other, task, None, 20)
            assert eventually(lambda: " 0 begun" in repr(one), 20)
            server.kill()  # it has saved nothing, and is back before anybody notices
            server.start()
            assert eventually(lambda task=task: Asked(other, task, 0.0).answer()[0] is State.PENDING, 20)  # type: ignore[misc]
            one.keep((task, reply(1)))
            if (answer := asked.answer()) != (None, errors.StoreUnavailable):  # else it was noticed all the same
                break
        assert answer == (State.DONE, b"x")


def test_a_store_that_is_frozen_holds_up_nobody_who_asks_and_not_the_end_for_long() -> None:
    with running_redis() as server, a_writer(server, "n") as one, server.frozen():
        start = time.monotonic()
        for number in range(1000):
            one.begin((f"t-{number}",))
            one.keep((f"t-{number}", reply()))
        assert time.monotonic() - start < 1
        assert Asked(one, "t-999").answer()[0] is State.DONE
        assert Asked(one, "other").answer() == (None, errors.StoreUnavailable)
        assert time.monotonic() - start < 3
        closing = threading.Thread(target=one.close)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()
        assert codec.pack(one.figures()), "plain data, also now"
