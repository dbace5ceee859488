"""The server key is exchanged for another one, and a key store goes to other machines as one text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from zmqagents.connection.host_keys import HostKeys
from zmqagents.errors import ConfigError
from zmqagents.security.bundle import MAX_BUNDLE_BYTES, exported, imported
from zmqagents.security.keys import KeyStore, new_pair
from zmqagents.security.rotation import retire, rotate


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore.open(tmp_path / "keys")


# ---------------------------------------------------------------- two keys for a time


def test_a_host_goes_on_with_the_former_key_until_the_time_of_the_next_one(keys: KeyStore) -> None:
    former = keys.server_keypair()
    pair, proved_from = rotate(keys, 3600)
    assert keys.server_keypair() == former
    assert keys.server_keys() == (former.public, pair.public)
    assert proved_from - time.time() == pytest.approx(3600, abs=60)


def test_from_that_time_on_a_host_that_starts_has_the_next_key_and_clients_know_both(keys: KeyStore) -> None:
    former = keys.server_keypair()
    pair, _ = rotate(keys, 0)
    assert KeyStore.open(keys.path).server_keypair() == pair
    assert keys.server_keys() == (pair.public, former.public)
    assert keys.server_keys_for("localhost", 5555) == (pair.public, former.public)


def test_a_store_that_was_opened_before_the_exchange_sees_it_and_its_end(keys: KeyStore) -> None:
    early = KeyStore.open(keys.path)
    pair, _ = rotate(keys, 0)
    assert pair.public in early.server_keys()
    retire(keys, [])
    assert early.server_keys() == (pair.public,)
    assert early.server_keypair() == pair


def test_there_are_never_three_keys(keys: KeyStore) -> None:
    rotate(keys, 0)
    with pytest.raises(ConfigError, match="two server keys are valid already"):
        rotate(keys, 0)


def test_the_former_key_is_not_retired_while_it_may_be_needed(keys: KeyStore) -> None:
    with pytest.raises(ConfigError, match="only one server key"):
        retire(keys, [])
    former = keys.server_keypair().public
    pair, _ = rotate(keys, 0)
    with pytest.raises(ConfigError, match="restart them first: late"):
        retire(keys, [("late", former), ("new", pair.public), ("private", None)])
    assert keys.server_keys() == (pair.public, former)
    assert retire(keys, [("new", pair.public), ("private", None)]) == pair.public
    assert keys.server_keys() == (pair.public,)


def test_the_former_key_is_not_retired_before_the_time_of_the_next_one(keys: KeyStore) -> None:
    rotate(keys, 600)
    with pytest.raises(ConfigError, match="hosts prove the new server key in"):
        retire(keys, [])


def test_the_secret_of_the_next_key_is_for_the_owner_alone(keys: KeyStore) -> None:
    pair, _ = rotate(keys, 600)
    path = keys.path / "server.next.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert pair.secret not in repr(pair)
    path.write_text(f"public = {pair.public}\nsecret = {pair.secret}\n")
    with pytest.raises(ConfigError, match="does not say from when"):
        keys.server_keys()


def test_a_client_keeps_what_a_host_that_it_knows_has_told(keys: KeyStore) -> None:
    old, new = new_pair().public, new_pair().public
    keys.remember_host("far", 5555, old)
    keys.learn_host("far", 5555, (old, new))
    keys.learn_host("unknown", 5555, (old, new))
    assert keys.server_keys_for("far", 5555) == (old, new)
    assert keys.known_hosts() == [("far", 5555, old)]
    keys.learn_host("far", 5555, (new,))
    assert keys.server_keys_for("far", 5555) == (new,)
    assert keys.problems() == []


def test_a_client_asks_for_the_keys_in_turn_and_stays_with_the_one_that_was_proved() -> None:
    kept: list[object] = []
    known = HostKeys(kept.append)
    assert [known.choose(("old",)) for _ in range(2)] == ["old", "old"]
    known.learn(["old", "new"])
    assert kept == [("old", "new")]
    assert [known.choose(("old",)) for _ in range(3)] == ["old", "new", "old"]
    assert known.choose(("old",)) == "new"
    known.learn(["new"])
    assert [known.choose(("old",)) for _ in range(2)] == ["new", "old"], "the store could not be written, say"
    assert known.choose(("new",)) == "new"


def test_what_a_connection_without_a_key_tells_is_not_believed() -> None:
    kept: list[object] = []
    known = HostKeys(kept.append)
    assert known.choose(()) is None
    known.learn(["forged"])
    assert kept == []
    assert known.choose(("real",)) == "real"


# ---------------------------------------------------------------- one store for several machines


def test_a_store_that_was_exported_and_imported_is_the_same(keys: KeyStore, tmp_path: Path) -> None:
    keys.authorize("ann", new_pair().public, "call")
    keys.remember_host("far.example", 5555, new_pair().public)
    rotate(keys, 600)
    copy = imported(exported(keys), tmp_path / "copy")
    assert copy.server_keys() == keys.server_keys()
    assert copy.server_keypair() == keys.server_keypair()
    assert copy.client_keypair() == keys.client_keypair()
    assert copy.authorized() == keys.authorized()
    assert copy.known_hosts() == keys.known_hosts()
    for path in copy.path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_client_that_was_removed_is_removed_from_the_copy_when_it_is_imported_again(
    keys: KeyStore, tmp_path: Path
) -> None:
    keys.authorize("ann", new_pair().public)
    rotate(keys, 0)
    copy = imported(exported(keys), tmp_path / "copy")
    assert {peer.name for peer in copy.authorized().values()} == {"self", "ann"}
    keys.revoke("ann")
    retire(keys, [])
    again = imported(exported(keys), tmp_path / "copy")
    assert {peer.name for peer in again.authorized().values()} == {"self"}
    assert again.server_keys() == keys.server_keys()


def test_files_that_are_the_same_are_not_written_again(keys: KeyStore, tmp_path: Path) -> None:
    copy = imported(exported(keys), tmp_path / "copy")
    before = {path: path.stat().st_ino for path in copy.path.rglob("*.*") if path.is_file()}
    imported(exported(keys), copy.path)
    assert {path: path.stat().st_ino for path in before} == before


def test_the_keys_of_other_hosts_are_not_overwritten_unless_that_is_asked_for(keys: KeyStore, tmp_path: Path) -> None:
    other = KeyStore.open(tmp_path / "other")
    mine = other.server_keypair()
    with pytest.raises(ConfigError, match="another server key"):
        imported(exported(keys), other.path)
    assert other.server_keypair() == mine
    assert imported(exported(keys), other.path, replace=True).server_keypair() == keys.server_keypair()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no bundle"), ("[]", "no bundle"), ('{"files": {}}', "no bundle"), ("\0", "no bundle"),
        ('{"zmqagents-keys": 2, "files": {}}', "form 2"),
        ('{"zmqagents-keys": 1, "files": {}}', "server.key is missing"),
        ('{"zmqagents-keys": 1, "files": {"../x": ""}}', "a file that no key store has"),
        ('{"zmqagents-keys": 1, "files": {"authorized/../../x.pub": ""}}', "a file that no key store has"),
        ('{"zmqagents-keys": 1, "files": {"server.key": 1}}', "a file that no key store has"),
        (" " * MAX_BUNDLE_BYTES + "{}", "at most"),
    ],
)  # fmt: skip
def test_what_is_no_bundle_of_keys_changes_nothing(keys: KeyStore, text: str, why: str) -> None:
    before = exported(keys)
    with pytest.raises(ConfigError, match=why):
        imported(text, keys.path, replace=True)
    assert exported(keys) == before


def test_a_bundle_with_a_damaged_file_is_refused_without_a_word_of_its_secrets(keys: KeyStore) -> None:
    said = json.loads(exported(keys))
    secret = new_pair().secret
    said["files"]["authorized/ann.pub"] = f"public = {secret[:-1]}\n"
    with pytest.raises(ConfigError, match=r"in the bundle of keys: authorized/ann.pub: a key is 40") as refused:
        imported(json.dumps(said), keys.path, replace=True)
    assert secret[:-1] not in str(refused.value)
    assert exported(keys) == exported(KeyStore.open(keys.path))
