"""Who may do what at the gateway: tokens stand for users of the host, and for nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway_world import World, gateway, token_of
from zmqagents.security.keys import KeyStore

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]
PATHS = [
    ("GET", "/offers"), ("GET", "/openapi.json"), ("POST", "/agents/shop/add"), ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"), ("POST", "/mcp"), ("GET", "/a2a/shop/.well-known/agent-card.json"),
    ("POST", "/a2a/shop"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway() as world:
        yield world


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("token", ["", "wrong", "zat_wrong"])
def test_a_wrong_token_opens_nothing(world: World, method: str, path: str, token: str) -> None:
    status, told = world.ask(method, path, {"a": 1} if method == "POST" else None, token=token)
    assert status == 401, told


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_another_site_reads_and_does_nothing(world: World, method: str, path: str) -> None:
    body: Any = {"a": 1} if method == "POST" else None
    assert world.ask(method, path, body, host="evil.example")[0] == 400
    if method == "POST":
        assert world.ask(method, path, body, origin="http://evil.example")[0] == 403


def test_no_answer_lets_another_site_in(world: World) -> None:
    status, _ = world.ask("OPTIONS", "/agents/shop/add", origin="http://evil.example")
    assert status in (400, 403, 405)


@pytest.fixture
def users(world: World) -> Iterator[dict[str, str]]:
    """Tokens of users, by their roles."""
    store = KeyStore.open()
    tokens = {}
    for role in ("call", "view"):
        run("keys", "add", f"a-{role}", "--role", role)
        tokens[role] = token_of(f"a-{role}")
    yield tokens
    for role in ("call", "view"):
        run("keys", "remove", f"a-{role}")
    assert store is not None


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "zmqagents", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_role_of_a_user_counts(world: World, users: dict[str, str]) -> None:
    assert world.ask("POST", "/agents/shop/add", {"a": 1}, token=users["call"]) == (200, 2)
    status, told = world.ask("POST", "/agents/shop/add", {"a": 1}, token=users["view"])
    assert (status, told["error"]["type"] in ("HTTPException", "PermissionRefused")) == (403, True)


def test_a_user_whose_key_is_removed_is_out(world: World, users: dict[str, str]) -> None:
    run("keys", "add", "ann", "--role", "call")
    token = token_of("ann")
    assert world.ask("POST", "/agents/shop/add", {"a": 1}, token=token) == (200, 2)
    run("keys", "remove", "ann")
    assert world.ask("POST", "/agents/shop/add", {"a": 1}, token=token)[0] == 401


def test_a_call_is_in_the_list_of_its_own_user_alone(world: World, users: dict[str, str]) -> None:
    import threading

    asked = threading.Thread(
        target=world.ask, args=("POST", "/agents/shop/slow", {"seconds": 3.0}), kwargs={"token": users["call"]}
    )
    asked.start()
    try:
        found: list[Any] = []
        for _ in range(500):
            found = [row for row in world.client.get_call_list() if row["method"] == "slow"]
            if found:
                break
        assert [row["agent"] for row in found] == ["shop"]
    finally:
        asked.join(30)
