"""For whom a request is: tokens and cookies, and what every request passes first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from zmqagents.security.keys import KeyStore, new_pair
from zmqagents.security.tokens import token_of
from zmqagents.web.access import MAX_SESSIONS, SESSION_S, Access
from zmqagents.web.guard import Guard


class Hours:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore.open(tmp_path / "keys")


@pytest.fixture
def access(store: KeyStore, hours: Hours) -> Access:
    return Access(store, clock=hours)


# ---------------------------------------------------------------- tokens and cookies


def test_the_two_links_are_for_all_and_for_looking(access: Access, store: KeyStore) -> None:
    admin, view = access.links["admin"], access.links["view"]
    assert [access.of_token(token) for token in (admin, view)] == [("", "admin", "link"), ("", "view", "link")]
    assert len({admin, view, *Access(store).links.values()}) == 4, "each process has its own"
    for wrong in ("", "x", admin[:-1], admin + view, "é", "\ud800", token_of(store)[:-1]):
        assert access.of_token(wrong) is None


def test_a_token_of_a_key_is_for_the_user_of_that_key(access: Access, store: KeyStore) -> None:
    public = new_pair().public
    store.authorize("ann", public, "view")
    assert access.of_token(token_of(store, "ann")) == (f"key:ann:{public}", "view", "ann")


def test_a_cookie_ends_with_its_time_its_token_and_when_it_is_given_back(
    access: Access, store: KeyStore, hours: Hours
) -> None:
    assert access.open("wrong") is None
    store.authorize("ann", new_pair().public)
    sessions = [access.open(token) for token in (access.links["view"], token_of(store, "ann"), access.links["admin"])]
    looks, anns, given_back = (session or "" for session in sessions)
    assert len(set(sessions)) == 3
    assert access.of_session(looks) == ("", "view", "link")
    access.close(given_back)
    store.revoke("ann")
    assert [access.of_session(each) for each in (given_back, anns, "nothing", "")] == [None] * 4
    hours.now = SESSION_S - 1
    assert access.of_session(looks)
    hours.now = SESSION_S
    assert access.of_session(looks) is None


def test_cookies_without_number_forget_the_oldest(access: Access) -> None:
    first = access.open(access.links["view"]) or ""
    for _ in range(MAX_SESSIONS):
        last = access.open(access.links["view"]) or ""
    assert access.of_session(first) is None
    assert access.of_session(last)


# ---------------------------------------------------------------- what every request passes


async def asked(access: Access, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to one request."""

    async def tell(request: Request) -> JSONResponse:
        return JSONResponse({})

    app = Starlette(routes=[Route("/{rest:path}", tell, methods=["GET", "POST", "DELETE"])])
    guard = Guard(app, access, ["127.0.0.1", "localhost", "[::1]"], "cookie")
    given = {"host": "127.0.0.1:8080", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await guard(scope, receive, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def statuses(access: Access, *requests: tuple[str, str, dict[str, str]]) -> list[int]:
    async def all_of() -> list[int]:
        return [(await asked(access, method, path, **headers))[0] for method, path, headers in requests]

    return asyncio.run(all_of())


def test_only_our_own_names_are_answered(access: Access) -> None:
    names = {
        "localhost": 200, "localhost:1": 200, "LOCALHOST:80": 200, "[::1]:8080": 200, "127.0.0.1": 200,
        "evil.example": 400, "evil.example:8080": 400, "127.0.0.1.evil.example": 400, "": 400, "localhost.evil": 400,
        "[::2]": 400,
    }  # fmt: skip
    found = statuses(access, *(("GET", "/", {"host": name}) for name in names))
    assert dict(zip(names, found, strict=True)) == names


def test_what_another_site_sends_is_refused_whatever_token_comes_with_it(access: Access) -> None:
    token = {"authorization": f"Bearer {access.links['admin']}"}
    foreign: list[dict[str, str]] = [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"}, {"origin": "http://localhost:8080"},
        {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
    ]  # fmt: skip
    ours: list[dict[str, str]] = [
        {}, {"origin": "http://127.0.0.1:8080"}, {"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"},
    ]  # fmt: skip
    for method in ("POST", "DELETE"):
        assert statuses(access, *((method, "/api/cancel", {**token, **each}) for each in foreign)) == [403] * 6
        assert statuses(access, *((method, "/api/cancel", {**token, **each}) for each in ours)) == [200] * 4


def test_nothing_below_api_is_told_to_nobody(access: Access) -> None:
    session = access.open(access.links["view"])
    good: list[dict[str, str]] = [
        {"authorization": f"Bearer {access.links['view']}"}, {"authorization": f"bearer  {access.links['view']}"},
        {"cookie": f"other=1; cookie={session}"},
    ]  # fmt: skip
    bad: list[dict[str, str]] = [
        {}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {access.links['view']}"},
        {"authorization": "Bearer"}, {"cookie": f"cookie={access.links['view']}"}, {"cookie": f"other={session}"},
        {"cookie": "cookie="}, {"cookie": f"cookie={session}", "authorization": "Bearer wrong"},
    ]  # fmt: skip
    for path in ("/api/calls", "/api/nothing", "/api/"):
        assert statuses(access, *(("GET", path, each) for each in good)) == [200] * 3
        assert statuses(access, *(("GET", path, each) for each in bad)) == [401] * 8
    assert statuses(access, ("GET", "/", {}), ("POST", "/api/session", {})) == [200, 200]


def test_every_answer_forbids_what_does_not_come_from_here(access: Access) -> None:
    for path, headers in (("/", {}), ("/api/calls", {}), ("/", {"host": "evil.example"})):
        _, told = asyncio.run(asked(access, "GET", path, **headers))
        policy = dict(part.strip().split(" ", 1) for part in told["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in told["content-security-policy"]
        assert (told["cache-control"], told["x-content-type-options"]) == ("no-store", "nosniff")
