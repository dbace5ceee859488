"""Keys on disk and admission of peers: real files, sockets, handshakes and processes."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from zmqagents.errors import ConfigError
from zmqagents.security import keys as keys_module
from zmqagents.security import zap
from zmqagents.security.curve import client_curve, guard_insecure, guard_tcp
from zmqagents.security.keys import KeyPair, KeyStore, Peer, look_at, new_pair, read_peers, write_peer
from zmqagents.security.zap import Authenticator

WAIT_MS = 5_000  # for what must come; a loaded machine may take long
SILENCE_MS = 400  # for what must not come; a handshake on loopback takes 2 ms
MEASURED = zmq.zmq_version_info() == (4, 3, 5) and sys.platform == "linux"
only_where_measured = pytest.mark.skipif(not MEASURED, reason="describes libzmq 4.3.5 on Linux")


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore.open(tmp_path / "keys")


@pytest.fixture
def ctx() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """The clients' context; its end closes their sockets and must not hang."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


Guard = Callable[[zmq.Socket[bytes]], None]


class Host:
    """A ROUTER on guarded endpoints whose thread answers each message with the sender's user id and role."""

    def __init__(self, authenticator: Authenticator | None, *endpoints: tuple[Guard, str]) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.authenticator = authenticator
        if authenticator is not None:
            authenticator.bind(self.context)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.addresses = []
        for guard, address in endpoints:
            guard(self.router)
            self.router.bind(address)
            self.addresses.append(self.router.get_string(zmq.LAST_ENDPOINT))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        if self.authenticator is not None:
            poller.register(self.authenticator.socket, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(20))
            if self.authenticator is not None and self.authenticator.socket in ready:
                self.authenticator.handle()
            if self.router in ready:
                identity, *body = self.router.recv_multipart(copy=False)
                user = zap.user_of(body[-1])
                role = self.authenticator.role_of(user or "") if self.authenticator else None
                self.router.send_multipart([identity.bytes, f"{zap.name_of(str(user))} {role}".encode()])

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.router.close()
        if self.authenticator is not None:
            self.authenticator.close()
        self.context.term()


def tcp_host(keys: KeyStore) -> Host:
    pair = keys.server_keypair()
    return Host(Authenticator(keys), (lambda s: guard_tcp(s, pair), "tcp://127.0.0.1:*"))


class Client:
    """A DEALER with a monitor. ``keys`` is (client pair, server's public key), None for mechanism NULL."""

    def __init__(
        self, ctx: zmq.Context[zmq.Socket[bytes]], address: str, keys: tuple[KeyPair, str] | None = None
    ) -> None:
        self.socket = ctx.socket(zmq.DEALER)
        self.socket.linger = 0
        if keys is not None:
            client_curve(self.socket, *keys)
        self._monitor = self.socket.get_monitor_socket()
        self.started = time.monotonic()
        self.socket.connect(address)
        self.socket.sndtimeo = WAIT_MS
        with contextlib.suppress(zmq.Again):  # it was refused before that, and will not connect again
            self.socket.send(b"who am I?")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.disable_monitor()  # before the monitor is closed, otherwise that hangs
        self._monitor.close()
        self.socket.close()

    def answer(self, timeout_ms: int = WAIT_MS) -> str | None:
        return self.socket.recv().decode() if self.socket.poll(timeout_ms) else None

    def event(self, *wanted: zmq.Event) -> tuple[zmq.Event, float] | None:
        """The first of the wanted events and the seconds since connect()."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while self._monitor.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            event = zmq.Event(recv_monitor_message(self._monitor)["event"])
            if event in wanted:
                return event, time.monotonic() - self.started
        return None


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---------------------------------------------------------------- the key store


def test_first_use_makes_a_store_in_which_its_own_client_is_admin(tmp_path: Path) -> None:
    place = tmp_path / "config" / "keys"
    keys = KeyStore.open(place)
    assert keys.authorized() == {keys.client_keypair().public: Peer("self", "admin")}
    again = KeyStore.open(place, create=False)
    assert again.server_keypair() == keys.server_keypair()
    assert again.client_keypair() == keys.client_keypair()
    assert keys.server_keypair() != keys.client_keypair()


def test_directories_are_0700_and_files_0600_whatever_the_umask(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        keys = KeyStore.open(tmp_path / "keys")
        keys.remember_host("far.example.org", 5555, new_pair().public)
    finally:
        os.umask(old_mask)
    found = {path: mode_of(path) for path in [keys.path, *keys.path.rglob("*")]}
    assert {path.name for path in found} >= {"server.key", "client.key", "self.pub", "far.example.org_5555.pub"}
    assert {path: mode for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_the_place_of_the_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert KeyStore.open().path == tmp_path / "a"
    monkeypatch.delenv("ZMQAGENTS_KEYS")
    assert KeyStore.open().path == tmp_path / "b" / "zmqagents"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
    assert KeyStore.open().path == tmp_path / "c" / ".config" / "zmqagents"


def test_a_home_that_cannot_be_written_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQAGENTS_KEYS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(ConfigError, match=r"/proc/.config.*cannot be made.*set ZMQAGENTS_KEYS"):
        KeyStore.open()


@pytest.mark.program
def test_eight_processes_that_start_at_once_make_one_store(tmp_path: Path) -> None:
    script = f"""
import sys
from zmqagents.security.keys import KeyStore
print(flush=True)
sys.stdin.readline()
keys = KeyStore.open({str(tmp_path / "keys")!r})
assert keys.authorized()[keys.client_keypair().public].role == "admin"
print(keys.server_keypair().public, keys.client_keypair().public)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:  # all have done their imports
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert len(set(answers)) == 1
    assert len(answers[0].split()) == 2
    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {"server.key", "client.key", "authorized", "known_hosts", ".lock"}  # and no drafts


def test_a_missing_store_is_an_error_unless_it_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key store"):
        KeyStore.open(tmp_path / "keys", create=False)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("name", ["server.key", "client.key"])
def test_a_key_file_that_others_can_read_is_refused_with_the_remedy(keys: KeyStore, name: str) -> None:
    path = keys.path / name
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"mode 0644.*chmod 600 {path}"):
        KeyStore.open(keys.path)


def test_a_key_directory_that_others_can_enter_is_refused_with_the_remedy(keys: KeyStore) -> None:
    keys.path.chmod(0o755)
    with pytest.raises(ConfigError, match=rf"chmod 700 {keys.path}"):
        KeyStore.open(keys.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_file_of_another_user_is_refused(keys: KeyStore) -> None:
    os.chown(keys.path / "client.key", 65534, -1)
    with pytest.raises(ConfigError, match=r"client\.key belongs to user 65534"):
        KeyStore.open(keys.path)


@pytest.mark.parametrize("damage", ["", "secret", "swap", "binary"])
def test_a_damaged_key_file_is_refused_without_showing_its_secret(keys: KeyStore, damage: str) -> None:
    path, pair = keys.path / "client.key", keys.client_keypair()
    contents = {
        "": b"",
        "secret": f"public = {pair.public}\nsecret = {pair.secret[:-1]}\n".encode(),
        "swap": f"public = {keys.server_keypair().public}\nsecret = {pair.secret}\n".encode(),
        "binary": b"secret = " + pair.secret.encode() + b"\xff",
    }
    path.write_bytes(contents[damage])
    with pytest.raises(ConfigError, match=r"client\.key") as caught:
        KeyStore.open(keys.path)
    assert pair.secret[:-1] not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_secrets_are_in_no_repr(keys: KeyStore) -> None:
    pair = keys.client_keypair()
    assert pair.public in repr(pair)
    assert pair.secret not in f"{pair!r} {pair} {keys!r} {[keys.server_keypair()]}"


def test_a_store_whose_own_key_was_revoked_does_not_authorise_it_again(keys: KeyStore) -> None:
    assert keys.revoke("self")
    assert KeyStore.open(keys.path).authorized() == {}
    assert not keys.revoke("self")


def test_a_store_made_half_by_a_process_that_died_is_completed(keys: KeyStore) -> None:
    server = keys.server_keypair()
    (keys.path / "client.key").unlink()
    again = KeyStore.open(keys.path)
    assert again.server_keypair() == server
    assert again.authorized() == {again.client_keypair().public: Peer("self", "admin")}


@pytest.mark.parametrize("name", ["", "../evil", ".hidden", "a/b", "ключ", "x" * 65, "new\nline"])
def test_a_name_that_is_no_file_name_is_refused(keys: KeyStore, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a key"):
        keys.authorize(name, new_pair().public)
    with pytest.raises(ConfigError, match="cannot be the name of a key"):
        keys.revoke(name)


def test_a_key_that_is_let_in_has_one_name(keys: KeyStore) -> None:
    bobs, own = new_pair().public, keys.client_keypair().public
    keys.authorize("bob", bobs, "view")
    keys.authorize("bob", bobs, "call")
    with pytest.raises(ConfigError, match="this is the key of 'bob' already; as_server keys list"):
        keys.authorize("ann", bobs)
    with pytest.raises(ConfigError, match="this is this user's own key; as_server keys list"):
        keys.authorize("ann", own)  # before "self", it would have taken the user's own role away
    assert keys.authorized() == {own: Peer("self", "admin"), bobs: Peer("bob", "call")}


@pytest.mark.parametrize("key", ["", "short", "x" * 41, "~" * 40, "é" * 40, "#" * 40])
def test_a_key_that_is_none_is_refused(keys: KeyStore, key: str) -> None:
    with pytest.raises(ConfigError, match="40 characters of Z85"):
        keys.authorize("bob", key)
    with pytest.raises(ConfigError, match="40 characters of Z85"):
        keys.remember_host("far", 5555, key)
    assert len(keys.authorized()) == 1


def test_an_unknown_role_is_refused(keys: KeyStore) -> None:
    with pytest.raises(ConfigError, match="admin, call, view, member or door"):
        keys.authorize("bob", new_pair().public, role="root")  # type: ignore[arg-type]


@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives_its_file(raw: bytes) -> None:
    """Z85 text may begin with ``#`` and hold ``=``."""
    key = z85.encode(raw).decode()
    with tempfile.TemporaryDirectory() as directory:
        write_peer(Path(directory, "bob.pub"), key, "call")
        assert dict(read_peers([Path(directory, "bob.pub")])) == {key: Peer("bob", "call")}


def test_a_change_by_another_process_is_seen_after_a_second_and_not_looked_for_before(tmp_path: Path) -> None:
    now = 100.0
    keys = KeyStore.open(tmp_path / "keys", clock=lambda: now)
    before = keys.authorized()
    bob = new_pair().public
    KeyStore.open(keys.path).authorize("bob", bob)
    now += 0.9
    assert keys.authorized() is before
    now += 0.2
    assert keys.authorized()[bob] == Peer("bob", "call")
    path = keys.path / "authorized" / "bob.pub"
    path.write_text(path.read_text().replace("call", "admin"))  # in place, as an editor may
    now += 1.1
    assert keys.authorized()[bob].role == "admin"
    KeyStore.open(keys.path).revoke("bob")
    now += 1.1
    assert bob not in keys.authorized()


def test_a_directory_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    now = 100.0
    keys = KeyStore.open(tmp_path / "keys", clock=lambda: now)
    for path in (keys.path / "authorized").iterdir():
        while time.time_ns() - path.stat().st_ctime_ns < 150_000_000:
            time.sleep(0.01)  # until its times are safely past
    peers = keys.authorized()
    now += 1.1
    assert keys.authorized() is peers


@contextlib.contextmanager
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Within it this process cannot open a file any more, once what it gives was called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []

    def fill() -> None:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        yield fill
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


@pytest.mark.parametrize("within", ["the directory", "its files"])
def test_a_process_without_a_free_descriptor_does_not_take_its_clients_for_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    now = 100.0
    keys = KeyStore.open(tmp_path / "keys", clock=lambda: now)
    before = keys.authorized()
    keys.authorize("bob", new_pair().public)
    now += 1.1
    with no_descriptors() as fill, monkeypatch.context() as patch:
        if within == "its files":
            patch.setattr(keys_module, "look_at", lambda directory: (look_at(directory), fill())[0])
        else:
            fill()
        assert keys.authorized() == before
    now += 1.1
    assert {peer.name for peer in keys.authorized().values()} == {"self", "bob"}


def test_a_look_is_trusted_only_when_the_newest_change_is_safely_past(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = keys.path / "authorized"
    newest = max(directory.stat().st_mtime_ns, (directory / "self.pub").stat().st_ctime_ns)
    for age_ns, settled in ((0, False), (50_000_000, False), (150_000_000, True)):
        monkeypatch.setattr(time, "time_ns", lambda age_ns=age_ns: newest + age_ns)
        assert look_at(directory)[2] is settled


def test_a_change_within_one_tick_of_the_file_clock_is_still_seen(tmp_path: Path) -> None:
    """Same inode, same size, and before Linux 6.13 mostly the same times: they advanced by ticks of 1 to 10 ms."""
    now = 100.0
    keys = KeyStore.open(tmp_path / "keys", clock=lambda: now)
    path = keys.path / "authorized" / "bob.pub"
    keys.authorize("bob", new_pair().public)
    for _ in range(20):
        public = new_pair().public
        path.write_text(f"public = {public}\nrole = call\n")
        now += 1.1
        assert keys.authorized()[public].name == "bob"


def test_key_files_that_cannot_be_believed_are_left_out_with_a_warning(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    directory = keys.path / "authorized"
    good, same = new_pair().public, keys.client_keypair().public
    files = {
        "good": f"# a comment\n\npublic={good}\n",
        "open": f"public = {new_pair().public}\n",
        "role": f"public = {new_pair().public}\nrole = root\n",
        "none": "role = admin\n",
        "twice": f"public = {same}\nrole = call\n",
        "bad name": f"public = {new_pair().public}\n",
    }
    for name, text in files.items():
        (directory / f"{name}.pub").write_text(text)
        (directory / f"{name}.pub").chmod(0o644)  # others cannot enter the directory
    (directory / "open.pub").chmod(0o666)
    (directory / "link.pub").symlink_to(directory / "good.pub")
    (directory / "README").write_text("no key")
    assert {peer.name: peer.role for peer in keys.authorized().values()} == {"self": "admin", "good": "call"}
    assert len(caplog.records) == 6  # open, role, none, twice, bad name, link


def test_nobody_is_authorised_while_the_directory_is_open_to_others(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    (keys.path / "authorized").chmod(0o777)
    keys.authorized()
    assert keys.authorized() == {}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    (keys.path / "authorized").chmod(0o700)
    keys.authorize("bob", new_pair().public)
    assert len(keys.authorized()) == 2


def test_the_server_key_for_this_machine_is_our_own_unless_another_is_remembered(keys: KeyStore) -> None:
    own, other = keys.server_keypair().public, new_pair().public
    assert keys.server_keys_for("localhost", 5555) == (own,)
    assert keys.server_keys_for("::1", 5555) == (own,)
    assert keys.server_keys_for("far.example.org", 5555) == ()
    keys.remember_host("Far.Example.org", 5555, other)
    keys.remember_host("localhost", 6666, other)  # a tunnel
    keys.remember_host("[2001:db8::1]", 5555, other)
    assert keys.server_keys_for("far.example.org", 5555) == (other,)
    assert keys.server_keys_for("far.example.org", 5556) == ()
    assert keys.server_keys_for("2001:db8::1", 5555) == (other,)
    assert keys.server_keys_for("localhost", 6666) == (other,)
    assert keys.server_keys_for("localhost", 5555) == (own,)


@pytest.mark.parametrize(("host", "port"), [("", 5555), ("..", 5555), ("x" * 300, 5555), ("far", 0), ("far", 65536)])
def test_a_host_that_cannot_be_is_refused(keys: KeyStore, host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="a host name and a port are needed"):
        keys.remember_host(host, port, new_pair().public)
    with pytest.raises(ConfigError, match="a host name and a port are needed"):
        keys.server_keys_for(host, port)


def test_a_host_name_cannot_leave_its_directory(keys: KeyStore) -> None:
    keys.remember_host("x/../../evil", 5555, new_pair().public)
    assert [path.parent for path in keys.path.rglob("*evil*")] == [keys.path / "known_hosts"]


# ---------------------------------------------------------------- who gets in


def test_a_guarded_endpoint_admits_listed_keys_and_nobody_else(
    keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]
) -> None:
    keys.authorize("bob", (bob := new_pair()).public)
    server = keys.server_keypair()
    with tcp_host(keys) as host:
        (tcp,) = host.addresses
        with Client(ctx, tcp, (keys.client_keypair(), server.public)) as client:
            assert client.answer() == "key:self admin"
        with Client(ctx, tcp, (bob, server.public)) as client:
            assert client.answer() == "key:bob call"
        stranger = Client(ctx, tcp, (new_pair(), server.public))
        plain = Client(ctx, tcp)
        deceived = Client(ctx, tcp, (bob, new_pair().public))
        with stranger, plain, deceived:
            seen = stranger.event(zmq.Event.HANDSHAKE_FAILED_AUTH, zmq.Event.HANDSHAKE_SUCCEEDED)
            assert seen is not None
            assert seen[0] == zmq.Event.HANDSHAKE_FAILED_AUTH
            assert seen[1] <= 1.0
            for client in (plain, deceived):
                refused = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.DISCONNECTED
                seen = client.event(*refused, zmq.Event.HANDSHAKE_SUCCEEDED)
                assert seen is not None
                assert seen[0] in refused
                assert seen[1] <= 1.0
            assert plain.answer(SILENCE_MS) is None
            for client in (stranger, deceived):
                assert client.answer(0) is None
        assert host.authenticator is not None
        assert (host.authenticator.accepted, host.authenticator.refused) == (2, 1)


@pytest.mark.parametrize("order", ["curve first", "insecure first"])
def test_endpoints_may_be_guarded_in_any_order(keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]], order: str) -> None:
    server = keys.server_keypair()
    guards: list[Guard] = [lambda s: guard_tcp(s, server), guard_insecure]
    if order == "insecure first":
        guards.reverse()
    with Host(Authenticator(keys, insecure=True), *((guard, "tcp://127.0.0.1:*") for guard in guards)) as host:
        tcp, insecure = host.addresses if order == "curve first" else reversed(host.addresses)
        curve = keys.client_keypair(), server.public
        with Client(ctx, insecure) as client:
            assert client.answer() == "insecure call"
        with Client(ctx, tcp, curve) as client:
            assert client.answer() == "key:self admin"
        with Client(ctx, insecure, curve) as one, Client(ctx, tcp) as other:
            assert one.answer(SILENCE_MS) is None
            assert other.answer(0) is None


def test_an_insecure_endpoint_is_open_to_nobody_unless_it_was_asked_for(
    ctx: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with (
        Host(Authenticator(None), (guard_insecure, "tcp://127.0.0.1:*")) as host,
        Client(ctx, host.addresses[0]) as client,
    ):
        seen = client.event(zmq.Event.HANDSHAKE_FAILED_AUTH, zmq.Event.HANDSHAKE_SUCCEEDED)
        assert seen is not None
        assert seen[0] == zmq.Event.HANDSHAKE_FAILED_AUTH


def test_a_revoked_key_is_refused_within_about_a_second(keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
    bob = new_pair()
    keys.authorize("bob", bob.public)
    mine = bob, keys.server_keypair().public
    with tcp_host(keys) as host:
        with Client(ctx, host.addresses[0], mine) as client:
            assert client.answer() == "key:bob call"
            KeyStore.open(keys.path).revoke("bob")  # as another process would
            deadline = time.monotonic() + 2.0
            client.socket.send(b"and now?")
            while client.answer() != "key:bob None":  # the standing connection has lost its role ...
                assert time.monotonic() < deadline
                client.socket.send(b"and now?")
        with Client(ctx, host.addresses[0], mine) as client:  # ... and a new one is refused
            seen = client.event(zmq.Event.HANDSHAKE_FAILED_AUTH, zmq.Event.HANDSHAKE_SUCCEEDED)
            assert seen is not None
            assert seen[0] == zmq.Event.HANDSHAKE_FAILED_AUTH


def test_a_key_authorised_while_the_host_runs_is_admitted(keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
    bob = new_pair()
    with tcp_host(keys) as host:
        deadline = time.monotonic() + 3.0
        KeyStore.open(keys.path).authorize("bob", bob.public, "admin")
        while True:
            with Client(ctx, host.addresses[0], (bob, keys.server_keypair().public)) as client:
                seen = client.event(zmq.Event.HANDSHAKE_FAILED_AUTH, zmq.Event.HANDSHAKE_SUCCEEDED)
                assert seen is not None
                if seen[0] == zmq.Event.HANDSHAKE_SUCCEEDED:
                    assert client.answer() == "key:bob admin"
                    return
            assert time.monotonic() < deadline


def test_a_context_has_one_authenticator(ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
    first, second = Authenticator(None), Authenticator(None)
    first.bind(ctx)
    with pytest.raises(ConfigError, match="context of its own"):
        second.bind(ctx)
    with pytest.raises(ConfigError, match="not bound"):
        second.socket  # noqa: B018  # the property is what raises
    assert second.handle() == 0
    first.close()
    first.close()
    second.bind(ctx)
    second.close()


def test_a_client_key_that_is_none_is_a_config_error(ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
    with ctx.socket(zmq.DEALER) as dealer, pytest.raises(ConfigError, match="40 characters"):
        client_curve(dealer, new_pair(), "short")


# ---------------------------------------------------------------- the handler itself


@pytest.mark.parametrize(
    ("user", "role"),
    [
        (f"uid:{os.geteuid()}", "admin"),
        (f"uid:{os.geteuid() + 1}", None),
        ("uid:", None),
        ("uid:-1", None),
        ("uid:²", None),
        ("key:self:{self}", "admin"),
        ("key:bob:{bob}", "call"),
        ("key:self:{bob}", None),
        ("key:bob:", None),
        ("key:bob", None),
        ("key:eve:{eve}", None),
        ("insecure", None),
        ("", None),
        ("self", None),
    ],
)
def test_roles_come_from_the_hosts_own_table(keys: KeyStore, user: str, role: str | None) -> None:
    public = {"self": keys.client_keypair().public, "bob": new_pair().public, "eve": new_pair().public}
    keys.authorize("bob", public["bob"])
    assert Authenticator(keys).role_of(user.format(**public)) == role


def test_a_name_that_got_another_key_is_another_user(keys: KeyStore) -> None:
    old, new = new_pair().public, new_pair().public
    authenticator = Authenticator(keys)
    keys.authorize("bob", old)
    assert authenticator.role_of(f"key:bob:{old}") == "call"
    keys.authorize("bob", new, "admin")
    assert authenticator.role_of(f"key:bob:{old}") is None
    assert authenticator.role_of(f"key:bob:{new}") == "admin"


def test_known_hosts_are_listed_and_forgotten(keys: KeyStore) -> None:
    one, two = new_pair().public, new_pair().public
    assert keys.known_hosts() == []
    keys.remember_host("Far.Example", 7411, one)
    keys.remember_host("::1", 80, two)
    assert keys.known_hosts() == [("::1", 80, two), ("far.example", 7411, one)]
    assert keys.forget_host("FAR.example", 7411)
    assert not keys.forget_host("far.example", 7411)
    assert keys.known_hosts() == [("::1", 80, two)]
    assert keys.server_keys_for("far.example", 7411) == ()


def test_a_user_that_is_let_in_beside_our_own_may_call_but_not_administrate() -> None:
    authenticator = Authenticator(None, uids={os.geteuid(), 4242})
    assert authenticator.admit(4242) == "uid:4242"
    assert authenticator.role_of("uid:4242") == "call"
    assert authenticator.role_of(f"key:self:{new_pair().public}") is None  # no store, no keys


def test_a_uid_is_let_in_if_it_is_listed_and_no_uid_at_all_never(caplog: pytest.LogCaptureFixture) -> None:
    me = os.geteuid()
    authenticator = Authenticator(None)
    assert [authenticator.admit(uid) for uid in (me, me + 1, me + 1, -1, None)] == [f"uid:{me}", None, None, None, None]
    assert (authenticator.accepted, authenticator.refused) == (1, 4)
    assert [f"user {who} on ipc" in line for who, line in zip((me + 1, -1, None), caplog.messages, strict=True)] == [
        True, True, True,
    ]  # fmt: skip


@contextlib.contextmanager
def question(authenticator: Authenticator) -> Iterator[zmq.Socket[bytes]]:
    """A socket that asks as libzmq does."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    authenticator.bind(context)
    try:
        with context.socket(zmq.DEALER) as asker:
            asker.linger = 0
            asker.connect(zap.ZAP_ENDPOINT)
            yield asker
    finally:
        authenticator.close()
        context.term()


PLAIN = [b"1.0", b"1", b"za.insecure", b"127.0.0.1", b"", b"NULL"]


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        (PLAIN, b"200"),
        ([*PLAIN, b"more"], b"400"),
        ([b"2.0", *PLAIN[1:]], b"400"),
        ([b"1.0", b"1", b"", b"127.0.0.1", b"", b"NULL"], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"NULL"], b"400"),
        ([b"1.0", b"1", b"za.ipc", b"localhost:%d:0:1" % os.geteuid(), b"", b"NULL"], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"\xff", b"", b"NULL"], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"CURVE"], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"CURVE", b"k" * 31], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"CURVE", b"k" * 32], b"400"),
        ([b"1.0", b"1", b"za.insecure", b"127.0.0.1", b"", b"CURVE", b"k" * 32], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"PLAIN", b"root", b"root"], b"400"),
        ([b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"GSSAPI", b"root"], b"400"),
        ([b""], b"400"),
    ],
)
def test_only_the_two_rules_lead_to_200(keys: KeyStore, frames: list[bytes], status: bytes) -> None:
    authenticator = Authenticator(keys, insecure=True)
    with question(authenticator) as asker:
        asker.send_multipart([b"", *frames])
        assert authenticator.handle() == 1
        _, version, request_id, code, text, user, metadata = asker.recv_multipart()
        assert (version, code, metadata) == (b"1.0", status, b"")
        assert request_id == (frames[1] if len(frames) > 1 else b"")
        assert (user == b"") == (status != b"200")
        assert text


@given(st.lists(st.lists(st.binary(max_size=40), max_size=9), min_size=1, max_size=5))
def test_garbage_is_answered_400_and_never_raises(requests: list[list[bytes]]) -> None:
    authenticator = Authenticator(None)
    logging.getLogger("zmqagents.security.zap").disabled = True
    try:
        with question(authenticator) as asker:
            for frames in requests:
                asker.send_multipart([b"", *frames])
            answered = [request for request in requests if request]  # libzmq drops one without a body
            handled = authenticator.handle()
            assert handled in (len(requests), len(answered))
            for _ in range(handled):
                assert asker.recv_multipart()[3] == b"400"
    finally:
        logging.getLogger("zmqagents.security.zap").disabled = False


def test_a_store_that_fails_refuses_the_peer_and_the_handler_goes_on(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator = Authenticator(keys)
    raw = z85.decode(keys.client_keypair().public)
    request = [b"", b"1.0", b"1", b"za.tcp", b"127.0.0.1", b"", b"CURVE", raw]
    with question(authenticator) as asker:
        with monkeypatch.context() as patch:
            patch.setattr(keys, "authorized", lambda: 1 / 0)
            asker.send_multipart(request)
            assert authenticator.handle() == 1
            assert asker.recv_multipart()[3] == b"400"
        assert "ZeroDivisionError" in caplog.text
        asker.send_multipart(request)
        assert authenticator.handle() == 1
        assert asker.recv_multipart()[3:6] == [b"200", b"OK", f"key:self:{keys.client_keypair().public}".encode()]


def test_a_host_that_is_not_insecure_answers_400_to_mechanism_null(keys: KeyStore) -> None:
    authenticator = Authenticator(keys)
    with question(authenticator) as asker:
        asker.send_multipart([b"", *PLAIN])
        assert authenticator.handle() == 1
        assert asker.recv_multipart()[3] == b"400"


def test_a_flood_of_handshakes_takes_the_router_thread_in_portions() -> None:
    authenticator = Authenticator(None, insecure=True)
    with question(authenticator) as asker:
        for _ in range(zap.REQUESTS_PER_TURN + 5):
            asker.send_multipart([b"", *PLAIN])
        assert [authenticator.handle() for _ in range(3)] == [zap.REQUESTS_PER_TURN, 5, 0]


def test_a_refused_peer_is_logged_once_and_all_of_them_twenty_times_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = zap.RefusalLog()
    for attempt in range(1000):
        refusals.add("10.0.0.1", 100.0 + attempt / 100)
    assert len(caplog.records) == 1
    for attempt in range(1000):
        refusals.add(f"10.0.1.{attempt}", 120.0)
    assert len(caplog.records) == zap.REFUSAL_LINES
    refusals.add("10.0.0.1", 161.0)
    assert len(caplog.records) == zap.REFUSAL_LINES + 2
    assert f"{999 + 1000 - (zap.REFUSAL_LINES - 1)} further attempts" in caplog.messages[-2]


def test_a_refusal_names_the_key_that_could_be_authorised(
    keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = new_pair()
    with tcp_host(keys) as host:
        for _ in range(3):
            with Client(ctx, host.addresses[0], (stranger, keys.server_keypair().public)) as client:
                assert client.event(zmq.Event.HANDSHAKE_FAILED_AUTH) is not None
    assert [stranger.public in message for message in caplog.messages] == [True]
    assert stranger.secret not in caplog.text


# ---------------------------------------------------------------- facts about libzmq that the rules rest on


FIRST_ID = """
import sys, zmq
from zmqagents.security.curve import seed_routing_ids
if "seed" in sys.argv:
    seed_routing_ids()
ctx = zmq.Context()
with ctx.socket(zmq.ROUTER) as router, ctx.socket(zmq.DEALER) as dealer:
    router.bind("inproc://r")
    dealer.connect("inproc://r")
    dealer.send(b"")
    print(router.recv_multipart()[0].hex())
ctx.term()
"""


def first_ids(*arguments: str) -> list[str]:
    """The first automatic routing id in each of two processes."""
    command = [sys.executable, "-c", FIRST_ID, *arguments]
    return [subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(2)]


@pytest.mark.program
def test_routing_ids_differ_between_two_starts() -> None:
    one, other = first_ids("seed")
    assert one != other
    assert len(one.strip()) == 10


@pytest.mark.program
@only_where_measured
def test_fact_unseeded_routing_ids_are_the_same_in_every_process() -> None:
    """When this fails `seed_routing_ids` may have become needless."""
    one, other = first_ids()
    assert one == other


def test_without_a_handler_a_guarded_endpoint_lets_nobody_in(
    keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]
) -> None:
    server = keys.server_keypair()
    with Host(
        None,
        (lambda s: guard_tcp(s, server), "tcp://127.0.0.1:*"),
        (guard_insecure, "tcp://127.0.0.1:*"),
    ) as host:
        tcp, insecure = host.addresses
        curve = keys.client_keypair(), server.public
        with Client(ctx, tcp, curve) as one, Client(ctx, insecure) as other:
            assert one.answer(SILENCE_MS) is None
            assert other.answer(0) is None


def test_after_its_handler_was_closed_a_guarded_endpoint_lets_nobody_in(
    keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]
) -> None:
    server = keys.server_keypair()
    curve = keys.client_keypair(), server.public
    with Host(None, (lambda s: guard_tcp(s, server), "tcp://127.0.0.1:*")) as host:
        authenticator = Authenticator(keys)
        authenticator.bind(host.context)
        with Client(ctx, host.addresses[0], curve) as client:
            assert authenticator.socket.poll(WAIT_MS)
            assert authenticator.handle() == 1
            assert client.answer() == "key:self None"  # it was in; this Host has no roles
        authenticator.close()
        with Client(ctx, host.addresses[0], curve) as client:
            assert client.answer(SILENCE_MS) is None


@only_where_measured
def test_fact_curve_without_enforced_domain_and_handler_accepts_every_key(
    keys: KeyStore, ctx: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """When this fails ZMQ_ZAP_ENFORCE_DOMAIN may have become needless."""

    def guard(router: zmq.Socket[bytes]) -> None:
        guard_tcp(router, keys.server_keypair())
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 0)

    stranger = new_pair(), keys.server_keypair().public
    with Host(None, (guard, "tcp://127.0.0.1:*")) as host, Client(ctx, host.addresses[0], stranger) as client:
        assert client.answer() == "None None"


def claim_user_id(address: str, user: bytes) -> bytes:
    """Speak ZMTP 3.0 (RFC 23) by hand: NULL, with a User-Id of our own in READY. Returns the host's first message."""

    def field(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value

    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as peer, peer.makefile("rb") as stream:
        peer.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        stream.read(64)  # the greeting of the other side
        ready = b"\x05READY" + field(b"Socket-Type", b"DEALER") + field(b"User-Id", user)
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        assert stream.read(1) == b"\x04"  # a command: READY
        stream.read(stream.read(1)[0])
        peer.sendall(b"\x00\x09who am I?")
        assert stream.read(1) == b"\x00"  # one short frame
        return stream.read(stream.read(1)[0])


def test_a_peer_cannot_choose_its_user_id_on_a_guarded_endpoint() -> None:
    with Host(Authenticator(None, insecure=True), (guard_insecure, "tcp://127.0.0.1:*")) as host:
        assert claim_user_id(host.addresses[0], b"uid:0") == b"insecure call"


@only_where_measured
def test_fact_a_peer_chooses_its_user_id_where_nothing_is_guarded() -> None:
    with Host(None, (lambda s: None, "tcp://127.0.0.1:*")) as host:
        assert claim_user_id(host.addresses[0], b"uid:0") == b"uid:0 None"


def test_a_change_of_the_keys_is_told_once_by_each_host_that_sees_it(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    host = KeyStore.open(keys.path, clock=lambda: now)
    caplog.set_level("INFO", "zmqagents.audit")

    def seen() -> list[str]:
        nonlocal now
        caplog.clear()
        now += 10.0
        host.authorized()
        return [record.getMessage() for record in caplog.records]

    assert seen() == [], "those that were there when it began"
    keys.authorize("ann", new_pair().public)
    assert seen() == ["the key of ann was added, with the role call"]
    assert seen() == []
    keys.revoke("ann")
    assert seen() == ["the key of ann was removed"]
