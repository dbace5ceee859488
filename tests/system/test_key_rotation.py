"""Hosts get another server key while clients elsewhere go on: over TCP with CURVE, as from another machine."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import ENDS_WITHIN_S, environment, eventually, free_port
from zmqagents import AuthenticationError, ConfigError, RpcClient
from zmqagents.security.keys import KeyStore


class Place:
    """A machine of its own, as far as zmqagents can tell: with keys and a directory for hosts that no other knows."""

    def __init__(self, path: Path) -> None:
        self.keys = KeyStore.open(path / "keys")
        self.environment = environment(
            ZMQAGENTS_KEYS=str(path / "keys"), ZMQAGENTS_RUNTIME=str(path / "run"), XDG_CONFIG_HOME=str(path)
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zmqagents", *words]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)

    @contextlib.contextmanager
    def host(self, port: int) -> Iterator[subprocess.Popen[str]]:
        """A host that is stopped in order at the end."""
        command = [sys.executable, "-m", "zmqagents", "start", "--host", "127.0.0.1", "--port", str(port), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment)
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["port"] == port
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(ENDS_WITHIN_S) == 0
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def knows(self, other: Place, port: int) -> None:
        """This place may call the hosts of the other one, whose key it has."""
        other.keys.authorize(f"client-{id(self)}", self.keys.client_keypair().public, "admin")
        self.keys.remember_host("127.0.0.1", port, other.keys.server_keypair().public)


@pytest.fixture
def places() -> Iterator[list[Place]]:
    """Four of them, with short paths: sockets lie there."""
    with contextlib.ExitStack() as stack:
        yield [Place(Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="za")))) for _ in range(4)]


def status(place: Place, port: int) -> int:
    return place.run("status", "--host", "127.0.0.1", "--port", str(port)).returncode


def learns(place: Place, port: int, keys: tuple[str, ...]) -> bool:
    """Whether a visit, which succeeds, has told these keys: a host looks at its own once a second."""
    assert status(place, port) == 0
    return place.keys.server_keys_for("127.0.0.1", port) == keys


def test_clients_that_know_the_former_key_go_on_while_it_is_exchanged(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, connected, visitor, absent = places
    port = free_port()
    for place in (connected, visitor, absent):
        place.knows(hosts, port)
    former = hosts.keys.server_keypair().public
    for name in ("ZMQAGENTS_KEYS", "ZMQAGENTS_RUNTIME"):
        monkeypatch.setenv(name, connected.environment[name])

    with RpcClient("127.0.0.1", port) as client:
        with hosts.host(port):
            assert client.get_server_info()["port"] == port
            made = json.loads(hosts.run("keys", "rotate", "--after", "0", "--json").stdout)
            following = made["public"]
            assert eventually(lambda: learns(visitor, port, (former, following)), ENDS_WITHIN_S)
            refused = hosts.run("keys", "retire")
            assert refused.returncode == 2
            assert "prove the former server key: restart them first" in refused.stderr
        # It was connected before the second key was made: the host has told it in its last message.
        assert eventually(lambda: connected.keys.server_keys_for("127.0.0.1", port) == (former, following), 5)
        with hosts.host(port):
            assert client.get_server_info()["port"] == port
            assert status(visitor, port) == 0
            assert status(absent, port) == 5, "it was away all the time, and knows a key that no host has"
            assert hosts.run("keys", "retire").returncode == 0
            assert eventually(lambda: learns(visitor, port, (following,)), ENDS_WITHIN_S)
            assert client.get_server_info()["port"] == port


def is_refused(*_: object) -> None:
    raise ConfigError("known_hosts cannot be written: Read-only file system")


def test_a_client_that_cannot_write_its_keys_goes_on_as_long_as_its_program_lives(
    places: list[Place], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts, connected, *_ = places
    port = free_port()
    connected.knows(hosts, port)
    monkeypatch.setenv("ZMQAGENTS_KEYS", connected.environment["ZMQAGENTS_KEYS"])
    monkeypatch.setenv("ZMQAGENTS_RUNTIME", connected.environment["ZMQAGENTS_RUNTIME"])
    monkeypatch.setattr(KeyStore, "learn_host", is_refused)  # root may write whatever the modes say
    with RpcClient("127.0.0.1", port) as client:
        with hosts.host(port):
            client.get_server_info()
            assert hosts.run("keys", "rotate", "--after", "0").returncode == 0
        with hosts.host(port):
            assert client.get_server_info()["port"] == port
        with (
            RpcClient("127.0.0.1", port, transport="tcp") as stranger,
            hosts.host(port),
            pytest.raises(AuthenticationError),
        ):
            stranger.get_server_info()
    assert "cannot be kept beyond the end of this program: known_hosts cannot be written" in caplog.text


def test_a_copy_of_the_keys_follows_its_file(places: list[Place], tmp_path: Path) -> None:
    hosts, copy, ann, _ = places
    for path in sorted(copy.keys.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    file, port = tmp_path / "shop.keys", free_port()
    hosts.keys.authorize("ann", ann.keys.client_keypair().public, "call")
    ann.keys.remember_host("127.0.0.1", port, hosts.keys.server_keypair().public)
    assert hosts.run("keys", "export", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-m", "zmqagents", "keys", "import", "--follow", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=copy.environment
    ) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        try:
            assert follower.stdout.readline() == f"imported {file}\n"
            with copy.host(port):
                assert status(ann, port) == 0
                hosts.keys.revoke("ann")
                hosts.run("keys", "export", str(file))
                assert eventually(lambda: status(ann, port) == 5, ENDS_WITHIN_S)
                assert follower.stderr.readline() == f"imported {file} again\n"
                file.write_text("half of it")
                assert follower.stderr.readline().startswith("nothing is changed: this is no bundle of keys")
                assert follower.poll() is None
        finally:
            follower.terminate()
            assert follower.wait(ENDS_WITHIN_S) in (-signal.SIGTERM, 0, 143)
