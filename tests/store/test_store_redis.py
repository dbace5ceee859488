"""What the store in Redis does beyond the contract: sharing, leases, waiting, addresses, trouble of all kinds.

Against real servers (`redis_server`). On another one, for longer, with more results:
``ZMQAGENTS_REDIS_SERVER=/path/to/server ZMQAGENTS_STRESS_S=20 ZMQAGENTS_MANY_RESULTS=100000 python -m pytest
tests/contract/test_store.py tests/store/test_store_redis.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import free_port
from redis_server import NO_SERVER, RedisServer, binaries, running_redis, version_of
from zmqagents.errors import ConfigError, MessageTooLarge, StoreFull, StoreUnavailable
from zmqagents.store import Found, State, StoreLimits, open_store
from zmqagents.store import redis as store_redis
from zmqagents.store.base import Mark
from zmqagents.store.redis import RedisStore
from zmqagents.store.redis_client import RedisListener

pytestmark = pytest.mark.program

MANY = int(os.environ.get("ZMQAGENTS_MANY_RESULTS", "5000"))
LEASE_S, ABSENCE_S = 0.8, 0.6  # as in earnest, but for the length
DEAD_S = LEASE_S + 0.1


@pytest.fixture
def server(shared_redis: RedisServer | None) -> RedisServer:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    return shared_redis


def opened(url: str, namespace: str, owner: str = "", **limits: Any) -> RedisStore:
    store = open_store("redis", StoreLimits(**limits), url=url, namespace=namespace, owner=owner)
    assert isinstance(store, RedisStore)
    return store


@pytest.fixture
def pair(
    server: RedisServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RedisStore, RedisStore]]:
    """The stores of two hosts on one namespace, whose leases are short."""
    monkeypatch.setattr(store_redis, "LEASE_S", LEASE_S)
    monkeypatch.setattr(store_redis, "ABSENCE_S", ABSENCE_S)
    name = request.node.name[:60].replace("[", "-").replace("]", "")
    with opened(server.url, name, "host-a") as first, opened(server.url, name, "host-b") as second:
        first.beat()
        second.beat()
        yield first, second
    with server.client as client:
        client.delete(*(client.keys(f"za:{{{name}}}:*") or ["none"]))


def heard(listener: RedisListener) -> Any:
    """The next word that is one."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with contextlib.suppress(StoreUnavailable):
            word = listener.get(0.2)
            if word is not None:
                return word
    raise AssertionError("nothing was heard")


# ---------------------------------------------------------------- shared


def test_what_one_store_puts_the_other_reads(pair: tuple[RedisStore, RedisStore]) -> None:
    first, second = pair
    first.begin("t")
    assert second.get("t").state is State.PENDING
    first.put("t", b"value")
    assert second.get("t") == Found(State.DONE, b"value")
    second.put("t", b"late")
    assert first.get("t").value == b"value"
    assert first.stats()[:4] == second.stats()[:4] == ("redis", 0, 1, 5 + 512)


def test_namespaces_keep_two_projects_apart(server: RedisServer) -> None:
    with opened(server.url, "project") as one, opened(server.url, "project.2") as other:
        one.put("t", b"mine")
        assert other.get("t").state is State.UNKNOWN
        assert other.stats().done == 0
        one.forget("t")


def test_results_outlive_the_store_that_made_them(server: RedisServer) -> None:
    with opened(server.url, "outlive") as first:
        first.put("t", b"value")
    with opened(server.url, "outlive") as second:
        assert second.get("t").value == b"value"
        assert second.stats().expired == second.stats().evicted == 0, "those count since the opening"
        second.forget("t")


def test_many_settlements_go_in_one_exchange_and_each_tells_its_own_failure(server: RedisServer) -> None:
    with opened(server.url, "many", max_bytes=2000) as store:
        failures = store.settle(
            [("a", None), ("b", b"value"), ("c", bytes(3000)), ("d", Mark.LOST), *((f"x{n}", b"") for n in range(600))]
        )
        assert {task: type(error) for task, error in failures.items()} == {"c": MessageTooLarge}
        assert [found.state for found in store.watch(["a", "b", "c", "d", "x599", "nobody"])] == [
            State.PENDING, State.EXPIRED, State.EXPIRED, State.LOST, State.DONE, State.UNKNOWN,
        ]  # fmt: skip
        assert store.stats().done == 3, "as many as the bytes hold"
        assert store.stats().refused == 1


# ---------------------------------------------------------------- leases


def test_tasks_of_an_owner_that_beats_no_more_are_lost_and_no_ghosts_are_counted(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    dead, reader = pair
    dead.begin("t")
    died = time.monotonic()  # at the latest
    assert reader.stats().pending == 1
    while reader.get("t").state is State.PENDING:
        assert time.monotonic() < died + DEAD_S
        reader.beat()
        time.sleep(0.1)
    assert reader.get("t").state is State.LOST
    assert reader.beat() == ({"host-b"}, {"host-a"}, True), "a beat tells who has died"
    assert reader.stats().pending == 0


def test_an_owner_that_was_only_held_up_gets_its_tasks_back(pair: tuple[RedisStore, RedisStore]) -> None:
    slow, reader = pair
    slow.begin("t")
    end = time.monotonic() + DEAD_S
    while time.monotonic() < end:
        reader.beat()
        time.sleep(0.2)
    assert reader.get("t").state is State.LOST
    slow.beat()
    assert reader.get("t").state is State.PENDING
    slow.put("t", b"after all")
    assert reader.get("t").value == b"after all"


def test_the_tasks_of_the_long_dead_are_marked_for_good(
    pair: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, reader = pair
    dead.settle([(f"t-{number}", None) for number in range(700)])
    monkeypatch.setattr(store_redis, "MOURNING_S", -10.0)  # as if it had been dead for long
    monkeypatch.setattr(store_redis, "LEASE_S", -5.0)
    dead.beat()
    monkeypatch.setattr(store_redis, "LEASE_S", LEASE_S)
    for _ in range(2):  # REAP_LIMIT at a time
        reader.beat()
    assert reader.stats().tombstones == 700
    assert reader.get("t-699").state is State.LOST
    dead.put("t-699", b"too late")
    assert reader.get("t-699").state is State.LOST


def test_after_an_absence_of_redis_itself_nobody_is_taken_for_dead(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    first, second = pair
    first.begin("t")
    time.sleep(DEAD_S)  # neither could reach it
    assert not second.beat().dead
    assert second.get("t").state is State.PENDING


def test_an_owner_that_ends_in_order_leaves_nobody_waiting(pair: tuple[RedisStore, RedisStore]) -> None:
    first, second = pair
    first.settle([(f"t-{number}", None) for number in range(1200)])
    first.retire()
    assert second.get("t-1199").state is State.LOST
    assert second.stats().pending == 0
    assert not second.beat().dead


# ---------------------------------------------------------------- waiting


def test_who_watches_a_task_is_told_of_its_settlement_and_of_no_other(pair: tuple[RedisStore, RedisStore]) -> None:
    maker, waiter = pair
    listener = waiter.listen()
    try:
        assert heard(listener) == ""
        maker.begin("mine")
        assert [found.state for found in waiter.watch(["mine", "unheard of"])] == [State.PENDING, State.UNKNOWN]
        maker.put("another", b"")
        maker.put("mine", b"value")
        assert heard(listener) == "mine"
        maker.lose("unheard of")  # an unknown task is not watched: its name may be made up
        assert waiter.watch(["mine"]) == [Found(State.DONE, b"value")]
        maker.put("last", b"")
        assert listener.get(0.2) is None
    finally:
        listener.close()


def test_a_killed_subscription_comes_back_and_says_so(pair: tuple[RedisStore, RedisStore], server: RedisServer) -> None:
    maker, waiter = pair
    listener = waiter.listen()
    try:
        assert heard(listener) == ""
        waiter.watch(["t"])
        with server.client as client:
            client.client_kill_filter(_type="pubsub")
        maker.put("t", b"value")
        assert heard(listener) == ""
        assert waiter.watch(["t"])[0].value == b"value", "the word was lost, the second look finds it"
    finally:
        listener.close()


# ---------------------------------------------------------------- addresses


def short_contract(store: RedisStore) -> None:
    listener = store.listen()
    try:
        assert heard(listener) == ""
        store.beat()
        store.begin("t")
        assert store.watch(["t"])[0].state is State.PENDING
        store.settle([("t", b"value"), ("u", b"other"), ("gone", Mark.LOST)])
        assert heard(listener) == "t"
        assert [found.value for found in store.watch(["t", "u", "gone"])] == [b"value", b"other", None]
        assert store.stats().done == 2
        assert {row.task_id for row in store.entries(5)} == {"t", "u"}
        store.forget("t")
        assert store.get("t").state is State.UNKNOWN
        assert store.get("gone").state is State.LOST
        store.retire()
    finally:
        listener.close()


@pytest.mark.parametrize("binary", binaries(), ids=version_of)
def test_every_server_that_is_here_does(binary: Path) -> None:
    with running_redis(binary) as server, opened(server.tcp_url, "n", "me") as store:
        short_contract(store)


def test_user_password_and_database_of_the_url_are_used_and_the_password_is_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_redis() as server:
        with server.client as client:
            client.acl_setuser(
                "agents", enabled=True, passwords=["+geheim!"], keys=["za:{n}:*"], reset_channels=True,
                channels=["za:{n}:*"], categories=["+@all", "-@dangerous"],
            )  # fmt: skip
        for good in (
            f"redis://agents:geheim%21@127.0.0.1:{server.port}/3",
            f"unix://agents:geheim%21@{server.socket}?db=3",
        ):
            with opened(good, "n", "me") as store:
                short_contract(store)
            with server.client as client:
                client.execute_command("SELECT", 3)
                assert client.keys("za:{n}:*"), "it is in database 3"
                client.flushall()
        for bad in (
            f"redis://agents:falsch%21@127.0.0.1:{server.port}",
            f"redis://:falsch%21@127.0.0.1:{server.port}/0?nonsense=1",
            f"redis://:falsch%21@127.0.0.1:{server.port}?socket_timeout=falsch!",
            "redis://:falsch%21@127.0.0.1:1",
            "redis+cluster://:falsch%21@127.0.0.1:1",
            "redis+sentinel://:falsch%21@127.0.0.1:1/service?sentinel_password=falsch%21",
            "redis+sentinel://:falsch%21@127.0.0.1:1",
            "http://:falsch%21@127.0.0.1:1",
        ):
            with pytest.raises((StoreUnavailable, ConfigError)) as caught:
                opened(bad, "n")
            assert "127.0.0.1" in str(caught.value)
            assert "falsch" not in f"{caught.value!r} {caught.value.__context__!r} {caplog.text}".replace(
                "for 'socket_timeout'", ""
            )


def test_tls_is_spoken_with_an_authority_of_ones_own_and_others_are_refused(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    port = free_port()
    options: dict[str, Any] = {"tls_port": str(port), "tls_cert_file": str(certificate), "tls_key_file": str(key),
               "tls_ca_cert_file": str(certificate), "tls_auth_clients": "no"}  # fmt: skip
    binary = next((path for path in binaries() if _is_built_with_tls(path)), None)
    if binary is None:
        pytest.skip("no server here is built with TLS")
    with running_redis(binary, **options):
        with opened(f"rediss://localhost:{port}?ssl_ca_certs={certificate}", "n", "me") as store:
            short_contract(store)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            opened(f"rediss://localhost:{port}", "n")
        with opened(f"rediss://localhost:{port}?ssl_cert_reqs=none&ssl_check_hostname=false", "n") as store:
            store.get("t")


def _is_built_with_tls(binary: Path) -> bool:
    """It ends by itself: for want of a certificate, or of TLS."""
    command = [str(binary), "--port", "0", "--tls-port", str(free_port())]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    words = told.stdout + told.stderr
    return "Bad directive" not in words and "TLS support" not in words


def test_a_sentinel_is_asked_for_the_master() -> None:
    with running_redis() as server, running_redis(watched=server) as sentinel:
        nowhere = "127.0.0.1:1"
        url = f"redis+sentinel://{nowhere},127.0.0.1:{sentinel.port}/service/2"
        with opened(url, "n", "me") as store:
            short_contract(store)
        with pytest.raises(StoreUnavailable, match="other"):
            opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", "n")
        with server.client as client:
            client.execute_command("SELECT", 2)
            assert client.keys("za:{n}:*")


def test_a_cluster_holds_a_namespace_in_one_slot() -> None:
    with running_redis(cluster_enabled="yes") as server:
        with server.client as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            end = time.monotonic() + 20
            while client.cluster("INFO")["cluster_state"] != "ok" and time.monotonic() < end:
                time.sleep(0.02)
        with opened(f"redis+cluster://127.0.0.1:{server.port}", "n", "me") as store:
            short_contract(store)


# ---------------------------------------------------------------- trouble


def test_a_redis_that_is_away_is_told_at_once_and_found_again() -> None:
    with running_redis(appendonly="yes") as server, opened(server.tcp_url, "n", "me") as store:
        store.put("t", b"value")
        server.stop()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"redis://127.0.0.1:{server.port}"):
            store.put("u", b"value")
        with pytest.raises(StoreUnavailable):
            store.settle([("u", b"value")])
        assert time.monotonic() - start < 3
        server.start()
        assert store.get("t").value == b"value", "it had saved it"
        store.settle([("u", b"value")])  # the scripts are not there any more
        assert store.stats().done == 2


def test_a_frozen_redis_is_given_up_after_its_time_limit_and_a_repeated_put_changes_nothing() -> None:
    with running_redis() as server, opened(f"{server.tcp_url}?socket_timeout=0.3", "n", "me") as store:
        store.begin("t")
        with server.frozen():
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"(?i)timeout"):
                store.put("t", b"value")
            assert 0.2 < time.monotonic() - start < 2
        store.put("t", b"value")  # the first may have been carried out since
        stats = store.stats()
        assert (stats.done, stats.bytes, stats.pending) == (1, 5 + 512, 0)
        assert store.get("t").value == b"value"


def test_scripts_that_the_server_has_forgotten_are_sent_again(server: RedisServer) -> None:
    with opened(server.url, "forgotten") as store, server.client as client:
        for use in (lambda: store.put("t", b"value"), lambda: store.settle([("u", b""), ("v", b"")])):
            client.script_flush()
            use()
        assert store.stats().done == 3
        for task in "tuv":
            store.forget(task)


@pytest.mark.parametrize("binary", binaries(), ids=version_of)
def test_a_full_redis_refuses_results_and_nothing_else(binary: Path) -> None:
    options: dict[str, Any] = {"maxmemory": "8mb", "maxmemory_policy": "noeviction"}
    with running_redis(binary, **options) as server:  # noqa: SIM117
        with opened(server.url, "n", "me") as store:
            failures = [store.settle([(f"t-{number}", bytes(500_000))]) for number in range(40)]
            kept = failures.count({})
            assert 2 < kept < 40
            assert [type(failure[f"t-{kept + n}"]) for n, failure in enumerate(failures[kept:])] == [StoreFull] * (
                40 - kept
            )
            with pytest.raises(StoreFull, match="maxmemory"):
                store.put("more", bytes(500_000))
            assert [store.get(f"t-{number}").state for number in range(kept)] == [State.DONE] * kept
            assert store.get(f"t-{kept}").state is State.UNKNOWN, "nothing was left half done"
            assert store.stats().bytes == kept * (500_000 + 512)
            failure = store.settle([("more", bytes(500_000)), ("lost", Mark.LOST)])
            assert [(task, type(error)) for task, error in failure.items()] == [("more", StoreFull)]
            store.beat()
            assert store.watch(["more"])[0].state is State.UNKNOWN
            store.forget("t-0")
            store.forget("t-1")
            store.put("more", bytes(500_000))
            assert store.get("more").state is State.DONE


def test_a_redis_that_throws_keys_away_on_its_own_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis() as server, caplog.at_level(logging.WARNING):
        for policy, warnings in (("noeviction", 0), ("volatile-ttl", 0), ("allkeys-lru", 1)):
            with server.client as client:
                client.config_set("maxmemory-policy", policy)
            caplog.clear()
            with opened(server.url, "n") as store:
                store.get("t")
            assert [policy in text for text in caplog.messages] == [True] * warnings


def test_results_that_redis_dropped_on_its_own_have_expired(server: RedisServer) -> None:
    with opened(server.url, "dropped") as store, server.client as client:
        store.put("t", b"value")
        client.delete("za:{dropped}:r:t")
        assert store.get("t").state is State.EXPIRED
        store.forget("t")
        assert store.stats().bytes == 0


def test_results_are_gone_from_redis_at_the_end_of_their_time_although_nobody_looks(server: RedisServer) -> None:
    with opened(server.url, "aging", ttl_s=0.2) as store, server.client as client:
        store.put("t", b"value")
        assert client.exists("za:{aging}:r:t")
        time.sleep(0.25)
        assert not client.exists("za:{aging}:r:t")
        assert store.get("t").state is State.EXPIRED
        assert store.stats()[1:7] == (0, 0, 0, 1, 1, 0)
        store.forget("t")


# ---------------------------------------------------------------- cost


def cost_s(store: RedisStore, name: str) -> tuple[float, float]:
    """Seconds for 200 puts, and for 200 gets."""
    start = time.perf_counter()
    for number in range(200):
        store.put(f"{name}-{number}", b"value")
    middle = time.perf_counter()
    for number in range(200):
        store.get(f"{name}-{number}")
    return middle - start, time.perf_counter() - middle


def test_an_operation_costs_the_same_with_many_times_the_results(server: RedisServer) -> None:
    """Within a factor of 2, so that a busy machine does not fail it; measured: see docs/stores.rst."""
    few, many = (opened(server.url, f"cost.{name}", max_entries=200_000) for name in ("few", "many"))
    with few, many:
        for store, count in ((few, 100), (many, MANY)):
            for start in range(0, count, 10_000):
                store.settle([(f"kept-{number}", b"value") for number in range(start, min(count, start + 10_000))])
        rounds = [(cost_s(few, f"r{number}"), cost_s(many, f"r{number}")) for number in range(7)]
        ratios = [min(slow[i] for _, slow in rounds) / min(fast[i] for fast, _ in rounds) for i in range(2)]
        print(f"put {ratios[0]:.2f}, get {ratios[1]:.2f} times the cost")
        assert max(ratios) < 2
    with server.client as client:
        client.flushdb()
