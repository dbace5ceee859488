"""Bearer tokens: each stands for one key of the key store, as long as the name has that key."""

from __future__ import annotations

from pathlib import Path

import pytest

from zmqagents import ConfigError
from zmqagents.security.keys import KeyStore, new_pair
from zmqagents.security.roles import Role, shortened
from zmqagents.security.rotation import retire, rotate
from zmqagents.security.tokens import token_of, user_of_token


class Hours:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0  # the store looks at its directory at each question
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore.open(tmp_path / "keys", clock=Hours())


@pytest.mark.parametrize("role", ["admin", "call", "view"])
def test_a_token_stands_for_its_key_and_the_role_that_it_has_now(store: KeyStore, role: Role) -> None:
    public = new_pair().public
    store.authorize("ann@home", public, "call")
    token = token_of(store, "ann@home")
    store.authorize("ann@home", public, role)
    assert user_of_token(store, token) == (f"key:ann@home:{public}", "ann@home", role)


def test_the_token_without_a_name_is_that_of_the_user(store: KeyStore) -> None:
    own = store.client_keypair().public
    assert user_of_token(store, token_of(store)) == (f"key:self:{own}", "self", "admin")


def test_a_token_ends_when_its_key_is_removed_or_replaced(store: KeyStore) -> None:
    store.authorize("ann", new_pair().public)
    token = token_of(store, "ann")
    store.authorize("ann", new_pair().public)
    assert user_of_token(store, token) is None
    store.revoke("ann")
    assert user_of_token(store, token) is None


def test_tokens_end_when_hosts_prove_another_server_key(store: KeyStore) -> None:
    token = token_of(store)
    rotate(store, 0)
    assert user_of_token(store, token) is None
    assert user_of_token(store, again := token_of(store)) is not None
    retire(store, [])
    assert user_of_token(store, again) is not None


def test_the_token_of_one_store_is_none_of_another(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore.open(tmp_path / "other", clock=Hours())
    public = new_pair().public
    for each in (store, other):
        each.authorize("ann", public)
    assert user_of_token(other, token_of(store, "ann")) is None


def test_the_key_of_a_web_process_has_no_token(store: KeyStore) -> None:
    public = new_pair().public
    store.authorize("web", public, "call")
    token = token_of(store, "web")
    store.authorize("web", public, "door")
    with pytest.raises(ConfigError, match="has no token"):
        token_of(store, "web")
    assert user_of_token(store, token) is None


def test_there_is_no_token_of_a_name_without_a_key(store: KeyStore) -> None:
    with pytest.raises(ConfigError, match="there is no key of 'bob'"):
        token_of(store, "bob")


@pytest.mark.parametrize("change", [
    lambda token: "", lambda token: "zat", lambda token: "zat..", lambda token: token[:-1], lambda token: token + "A",
    lambda token: token.replace("zat", "zbt"), lambda token: token + ".x", lambda token: "zat.\xff." + token,
    lambda token: f"zat.c2VsZg.{token.rpartition('.')[2]}", lambda token: "zat.%%%." + "A" * 43,
    lambda token: "zat." + "A" * 9999 + ".x", lambda token: token.swapcase(), lambda token: "zat./////w.AAAA",
])  # fmt: skip
def test_what_is_no_token_stands_for_nobody(store: KeyStore, change: object) -> None:
    store.authorize("ann", new_pair().public)
    assert callable(change)
    assert user_of_token(store, change(token_of(store, "ann"))) is None


def test_no_secret_is_in_a_token(store: KeyStore) -> None:
    token = token_of(store)
    assert store.client_keypair().secret not in token
    assert store.server_keypair().secret not in token
    assert token.isascii()
    assert len(token) < 200


def test_task_ids_are_shortened_wherever_they_stand() -> None:
    task = "mfzwizltoqqhk4tf-17"
    told = [
        {"task_id": task, "note": f"waits for {task}, then {task}.", "waits_for": [task], "n": 3, "none": None},
        "client mfzwizltoqqhk4tf of uid:0 has come", {"client": "mfzwizltoqqhk4tf", "word": "characterization-x"},
    ]  # fmt: skip
    assert shortened(told) == [
        {"task_id": "mfzw..-17", "note": "waits for mfzw..-17, then mfzw..-17.", "waits_for": ["mfzw..-17"], "n": 3,
         "none": None},
        "client mfzw.. of uid:0 has come", {"client": "mfzw..", "word": "characterization-x"},
    ]  # fmt: skip
