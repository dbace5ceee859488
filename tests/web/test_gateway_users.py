"""Who may do what at the gateway: tokens stand for users of the host, and for nobody else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from gateway_world import World, gateway, token_of
from hosts import eventually

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


def test_a_refusal_by_the_web_process_reads_like_all_errors_and_says_what_to_do(world: World) -> None:
    path = "/agents/shop/add"
    for told, kind, text in (
        (world.ask("POST", path, {"a": 1}, token=""), "Unauthorized", "a token is needed: Authorization: Bearer"),
        (world.ask("POST", path, {"a": 1}, token="zat_wrong"), "Unauthorized", "as_server keys token prints one"),
        (world.ask("GET", path), "MethodNotAllowed", "Method Not Allowed"),
        (world.ask("POST", path, raw=b"{"), "BadRequest", "is no JSON"),
    ):  # fmt: skip
        assert told[1]["error"]["type"] == kind, told
        assert text in told[1]["error"]["message"], told


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_another_site_reads_and_does_nothing(world: World, method: str, path: str) -> None:
    body: Any = {"a": 1} if method == "POST" else None
    assert world.ask(method, path, body, host="evil.example")[0] == 400
    if method == "POST":
        assert world.ask(method, path, body, origin="http://evil.example")[0] == 403


def test_no_answer_lets_another_site_in(world: World) -> None:
    status, _ = world.ask("OPTIONS", "/agents/shop/add", origin="http://evil.example")
    assert status in (400, 403, 405)


@contextlib.contextmanager
def user(name: str, role: str) -> Iterator[str]:
    """The token of a user whose key is in the key store for the block; running programs see it within a second."""
    run("keys", "add", name, zmq.curve_keypair()[0].decode(), "--role", role)
    try:
        yield token_of(name)
    finally:
        run("keys", "remove", name)


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "zmqagents", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_role_of_a_user_counts(world: World) -> None:
    with user("a-caller", "call") as token:
        assert eventually(lambda: world.ask("POST", "/agents/shop/add", {"a": 1}, token=token) == (200, 2), 20)
    with user("a-viewer", "view") as token:
        assert eventually(lambda: world.ask("GET", "/offers", token=token)[0] != 401, 20)
        status, told = world.ask("POST", "/agents/shop/add", {"a": 1}, token=token)
        assert (status, told["error"]["message"]) == (403, "this needs the role call or admin; a-viewer has view")


def test_a_user_whose_key_is_removed_is_out(world: World) -> None:
    with user("ann", "call") as token:
        assert eventually(lambda: world.ask("POST", "/agents/shop/add", {"a": 1}, token=token) == (200, 2), 20)
    assert eventually(lambda: world.ask("POST", "/agents/shop/add", {"a": 1}, token=token)[0] == 401, 20)
