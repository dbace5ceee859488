"""Which clients may talk to a host: the key store on disk, and the rules by which `zap` and `curve` ask it.

A client on the Unix socket is known by its uid, which the kernel tells (`unix_listener`): `Authenticator.admit` gives
the user id ``uid:<n>`` to a uid that is allowed, before a byte of the client is read. Every socket of libzmq that
listens has an authentication domain, and the ROUTER asks our handler (ZAP, RFC 27) about every connection before the
peer's first message is read:

    domain       mechanism   accepted                                  user id
    za.tcp       CURVE       its public key is in ``authorized/``      key:<name>:<public key>
    za.insecure  NULL        any peer, if insecure was asked for       insecure
    otherwise                refused: status 400

Measured on libzmq 4.3.5, and the reason for each rule here:

* CURVE without a running handler accepts *every* key, unless ZMQ_ZAP_ENFORCE_DOMAIN is set together with a
  domain that is not empty. Then no handler means no entry: all ``guard_*`` functions set both.
* Without ZAP a peer chooses its own ``User-Id``. So only `user_of` a message from a guarded socket counts.
* Status 300 gives the client no event at all, 400 gives HANDSHAKE_FAILED_AUTH within a millisecond: a
  refusal is always 400, also when the handler itself fails.
* Security options hold for the binds that follow, so one ROUTER can listen on several endpoints: guard,
  bind, guard, bind.
* ROUTER names its peers by a counter that starts from an unseeded ``rand()``, and a peer that claims the next
  name aborts the process: see `seed_routing_ids`.

The key store is made on first use and makes one user's host and clients trust each other::

    $ZMQAGENTS_KEYS, else $XDG_CONFIG_HOME/zmqagents, else ~/.config/zmqagents        (0700; files 0600)
        server.key                     key pair of every host of this user
        server.next.key                the pair that follows it, and from when hosts that start have it (`rotation`)
        client.key                     key pair of every client of this user
        door.key                       key pair of this user's web processes, where they call hosts elsewhere
        authorized/<name>.pub          a client that may connect: ``public = <Z85>``, ``role = ``, see `roles`
        known_hosts/<host>_<port>.pub  the public key of a host elsewhere, and the ``next`` one if it has told that

A file is lines of ``name = value``; a line that begins with ``#`` is a comment. Keys are Z85, 40 characters.
Secrets never appear in a repr, a log line or an error.

The key is part of the user id because a name may get another key: then sessions of the old one are over, too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import zmq
from zmq.utils import z85

from ..errors import ConfigError
from .private import StrPath, is_this_machine, one_at_a_time, private_dir, read_private, write_private
from .roles import ROLES, Role, is_role

__all__ = ["NEXT_KEY", "REFRESH_S", "KeyPair", "KeyStore", "Peer"]

log = logging.getLogger(__name__)
audit_log = logging.getLogger("zmqagents.audit")

SELF = "self"  # the name under which a store authorises its own client key
REMEDY = "set ZMQAGENTS_KEYS to a directory for the keys"
NEXT_KEY = "server.next.key"
REFRESH_S = 1.0  # how often the allow list on disk is looked at
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


# ---------------------------------------------------------------- keys on disk


class KeyPair(NamedTuple):
    """A CURVE key pair, both halves Z85 text. The secret is kept out of the repr."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"


class Peer(NamedTuple):
    """An authorised client: the name of its file and what it may do."""

    name: str
    role: Role


class KeyStore:
    """The keys of one user. Make it with `open`; any thread may use it.

    ``clock`` gives seconds, monotonic; a test may pass its own.
    """

    def __init__(self, path: Path, server: KeyPair, client: KeyPair, clock: Callable[[], float]) -> None:
        self.path = path
        self._server = server
        self._client = client
        self._clock = clock
        self._peers: Mapping[str, Peer] = {}
        self._looked_at = -REFRESH_S  # clock time of the last look at the directory
        self._signature: object = None  # what the directory looked like then; None: read it again
        self._in_need = False  # of descriptors, at the last look

    @classmethod
    def open(
        cls, path: StrPath | None = None, create: bool = True, *, clock: Callable[[], float] = time.monotonic
    ) -> KeyStore:
        """The store at ``path`` (None: the user's own, see the module), made if missing and ``create``.

        Processes that start at once get the same keys. Raises ConfigError, which names the file and the remedy,
        for a missing store without ``create``, for a file or directory that others may read, that has another
        owner, or that does not hold what it should.
        """
        place = Path(path) if path is not None else cls.default_place()
        try:
            return cls(*_opened(place, create), clock)
        except ConfigError as exc:
            if not create or not isinstance(exc.__cause__, OSError):  # OSError: it cannot be made where it is
                raise
            raise ConfigError(f"key store: {exc}: {REMEDY}") from exc.__cause__

    @staticmethod
    def default_place() -> Path:
        """Where the user's own store is, or is to be; see the module. Raises ConfigError if there is no such place."""
        chosen = os.environ.get("ZMQAGENTS_KEYS")
        if chosen:
            return Path(chosen)
        xdg = os.environ.get("XDG_CONFIG_HOME", "")  # whose specification says to ignore a relative path
        place = Path(xdg if os.path.isabs(xdg) else os.path.expanduser("~/.config"), "zmqagents")
        if not place.is_absolute():
            raise ConfigError(f"the home directory is not known: {REMEDY}")
        return place

    def server_keypair(self) -> KeyPair:
        """The key pair of this user's hosts: what one that starts now proves to have."""
        return self._server_pairs()[0]

    def server_keys(self) -> tuple[str, ...]:
        """The public keys by which clients may know a host of this store now, that of `server_keypair` first.

        There are two while the key is exchanged for another one; see `rotation`.
        """
        return tuple(pair.public for pair in self._server_pairs())

    def replace_server_pair(self, pair: KeyPair) -> None:
        """Hosts that start from now on have ``pair``; for `rotation`."""
        _write_pair(self.path / "server.key", pair)
        self._server = pair

    def _server_pairs(self) -> tuple[KeyPair, ...]:
        """As the files say now: a host that runs must tell its clients of a key that was made since it started."""
        try:
            present, following = _read_pair(self.path / "server.key"), read_next(self.path)
        except FileNotFoundError:
            return (self._server,)
        if following is None or following[0] == present:  # its exchange is about to end
            return (present,)
        pair, proved_from = following
        return (pair, present) if time.time() >= proved_from else (present, pair)

    def client_keypair(self) -> KeyPair:
        """The key pair of this user's clients."""
        return self._client

    def door_keypair(self) -> KeyPair:
        """The key pair with which this user's web processes call hosts elsewhere, made when it is first asked for."""
        path = self.path / "door.key"
        with one_at_a_time(self.path / ".lock"):
            if not os.path.lexists(path):
                _write_pair(path, new_pair())
            return _read_pair(path)

    def has_door(self) -> bool:
        """Whether a web process has asked for its key pair."""
        return os.path.lexists(self.path / "door.key")

    def authorize(self, name: str, public_key: str, role: Role = "call") -> None:
        """Let clients with ``public_key`` (Z85) connect, as ``name``; replaces an earlier key of that name.

        Hosts that run see it within a second. Raises ConfigError for a name or key that cannot be, and for a key that
        has another name here: of two files with one key only the first counts.
        """
        known = self.authorized().get(public_key)
        if known is not None and known.name != name:
            whose = "this user's own key" if known.name == SELF else f"the key of {known.name!r} already"
            raise ConfigError(f"this is {whose}; as_server keys list shows the keys that are let in")
        write_peer(self._file_of(name), public_key, role)
        self._signature = None

    def revoke(self, name: str) -> bool:
        """Refuse ``name`` from now (running hosts: within a second); False if it was not there.

        Connections that stand lose their role (`Authenticator.role_of` is None), upon which a host ends their sessions.
        """
        try:
            self._file_of(name).unlink()
        except FileNotFoundError:
            return False
        finally:
            self._signature = None
        return True

    def authorized(self) -> Mapping[str, Peer]:
        """The clients that may connect, by public key (Z85); not to be changed.

        Cheap: the directory is looked at once a second at most and read only when it changed. A file that cannot
        be believed is left out, with a warning. If the directory itself cannot be read, no client is
        authorised. But if this process lacks a descriptor or memory to read it with, the keys stay as they were.
        """
        now = self._clock()
        if self._signature is not None and now - self._looked_at < REFRESH_S:
            return self._peers
        self._looked_at = now
        directory = self.path / "authorized"
        try:
            paths, signature, settled = look_at(private_dir(directory, create=False))
            peers = self._peers if signature == self._signature else dict(read_peers(paths))
        except (OSError, ConfigError) as exc:
            if _is_shortage(exc):
                if not self._in_need:
                    log.warning("changes of the authorised keys cannot be seen now: %s", exc)
                self._in_need = True
                return self._peers
            if self._signature != "unreadable":
                log.error("no client is authorised: %s", exc)
            self._peers, self._signature = {}, "unreadable"
            return self._peers
        if peers != self._peers and self._signature is not None:
            _tell_of_change(self._peers, peers)
        self._peers, self._in_need = peers, False
        # File times advance in ticks of some milliseconds, so a change right after this look may not show in
        # them: trust a look only once its newest file is older than that.
        self._signature = signature if settled else "unsettled"
        return self._peers

    def problems(self) -> list[str]:
        """What is wrong with the files of clients and known hosts, one line for each file that does not count."""
        found: list[str] = []
        seen: dict[str, str] = {}
        for path in sorted(self.path.glob("*/*.pub")):
            try:
                if path.parent.name == "authorized":
                    _read_peer(path, seen)
                else:
                    _read_host(path)
            except (ConfigError, FileNotFoundError) as exc:
                found.append(str(exc))
        return found

    def remember_host(self, host: str, port: int, public_key: str) -> None:
        """Keep the public key (Z85) of the host at ``host:port``; replaces an earlier one."""
        _write_host(self._host_file(host, port), (public_key,))

    def learn_host(self, host: str, port: int, public_keys: Sequence[str]) -> None:
        """The host at ``host:port`` has proved one of its keys and has told that these are valid: keep them.

        Nothing is kept of a host that was not remembered before.
        """
        path = self._host_file(host, port)
        with contextlib.suppress(FileNotFoundError):
            if _read_host_keys(path) != tuple(public_keys):
                _write_host(path, public_keys)

    def forget_host(self, host: str, port: int) -> bool:
        """Know the host at ``host:port`` no more; False if it was not known."""
        try:
            self._host_file(host, port).unlink()
        except FileNotFoundError:
            return False
        return True

    def known_hosts(self) -> list[tuple[str, int, str]]:
        """``(host, port, public key)`` of the hosts elsewhere whose keys are kept, sorted.

        Raises ConfigError for a damaged file, naming it.
        """
        found = []
        for path in (self.path / "known_hosts").glob("*_*.pub"):
            name, _, port = path.stem.rpartition("_")
            if port.isdecimal():
                with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
                    found.append((urllib.parse.unquote(name), int(port), _read_host(path)))
        return sorted(found)

    def server_keys_for(self, host: str, port: int) -> tuple[str, ...]:
        """The public keys of which the host at ``host:port`` must prove to have one; none if none is known.

        Remembered ones come first (``localhost`` may be a tunnel); otherwise, for this machine, our own. Raises
        ConfigError for a damaged file.
        """
        try:
            return _read_host_keys(self._host_file(host, port))
        except FileNotFoundError:
            return self.server_keys() if is_this_machine(host) else ()

    def __repr__(self) -> str:
        return f"<KeyStore {self.path}>"

    def _file_of(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be the name of a key: letters, digits and . _ @ -, at most 64")
        return self.path / "authorized" / f"{name}.pub"

    def _host_file(self, host: str, port: int) -> Path:
        name = urllib.parse.quote(host.strip().strip("[]").rstrip(".").lower(), safe="")
        if not name or name.startswith(".") or len(name) > 240 or not 0 < port < 65536:
            raise ConfigError(f"a host name and a port are needed, not {host!r} and {port!r}")
        return self.path / "known_hosts" / f"{name}_{port}.pub"


def _opened(place: Path, create: bool) -> tuple[Path, KeyPair, KeyPair]:
    """The directory of a store and its keys, of the host and of the client; see `KeyStore.open`."""
    try:
        directory = private_dir(place, create=create)
    except FileNotFoundError as exc:
        raise ConfigError(f"no key store at {place}") from exc
    try:
        server, client = _read_pair(directory / "server.key"), _read_pair(directory / "client.key")
    except FileNotFoundError as exc:
        if not create:
            raise ConfigError(f"key file {exc.filename} is missing") from exc
        server, client = _make_keys(directory)
    if create:
        private_dir(directory / "authorized")
        private_dir(directory / "known_hosts")
    return directory, server, client


def _make_keys(directory: Path) -> tuple[KeyPair, KeyPair]:
    """Make what is missing of the two key pairs, one process at a time.

    The client's own authorisation is written before its key: a store that has a client.key has been
    complete once, so an entry missing from it later was revoked, and stays so.
    """
    with one_at_a_time(directory / ".lock"):  # the process that has it makes two keys, some milliseconds
        server_path, client_path = directory / "server.key", directory / "client.key"
        if not os.path.lexists(server_path):
            _write_pair(server_path, new_pair())
        if not os.path.lexists(client_path):
            pair = new_pair()
            write_peer(private_dir(directory / "authorized") / f"{SELF}.pub", pair.public, "admin")
            _write_pair(client_path, pair)
        return _read_pair(server_path), _read_pair(client_path)


def new_pair() -> KeyPair:
    """A key pair that nothing has used yet."""
    try:
        public, secret = zmq.curve_keypair()
    except zmq.ZMQError as exc:
        raise ConfigError("this libzmq was built without CURVE: install pyzmq from its wheel") from exc
    return KeyPair(public.decode(), secret.decode())


def _write_pair(path: Path, pair: KeyPair, **more: str) -> None:
    text = f"# zmqagents key pair: keep the secret to yourself\npublic = {pair.public}\nsecret = {pair.secret}\n"
    write_private(path, (text + "".join(f"{name} = {value}\n" for name, value in more.items())).encode())


def write_next(directory: Path, pair: KeyPair, proved_from: float) -> None:
    """Keep ``pair`` as the one that follows the server's key; hosts that start from then on, in epoch seconds, have it.

    Raises ConfigError when it cannot be written.
    """
    _write_pair(directory / NEXT_KEY, pair, **{"from": f"{int(proved_from)}"})


def read_next(directory: Path) -> tuple[KeyPair, float] | None:
    """The reverse of `write_next`; None: the key is not being exchanged. Raises ConfigError for a damaged file."""
    path = directory / NEXT_KEY
    try:
        fields = _fields(path, forbidden=0o077)
    except FileNotFoundError:
        return None
    if not re.fullmatch(r"\d{1,12}", fields.get("from", "")):
        raise ConfigError(f"{path} does not say from when its key is used")
    return _pair_of(fields, path), float(fields["from"])


def _read_pair(path: Path) -> KeyPair:
    return _pair_of(_fields(path, forbidden=0o077), path)


def _pair_of(fields: Mapping[str, str], path: Path) -> KeyPair:
    public = _checked_key(fields.get("public", ""), path)
    secret = _checked_key(fields.get("secret", ""), path)
    if zmq.curve_public(secret.encode()).decode() != public:
        raise ConfigError(f"{path} is damaged: its two keys do not belong together")
    return KeyPair(public, secret)


def write_peer(path: Path, public_key: str, role: str) -> None:
    """Write the file of a client that may connect. Raises ConfigError for a key or a role that is none."""
    write_private(path, f"public = {_checked_key(public_key, path)}\nrole = {_checked_role(role, path)}\n".encode())


def read_peers(paths: list[Path]) -> Iterator[tuple[str, Peer]]:
    """The public key and the `Peer` of each file; a damaged file is logged and left out."""
    seen: dict[str, str] = {}
    for path in paths:
        try:
            yield _read_peer(path, seen)
        except FileNotFoundError:  # revoked since the directory was read
            continue
        except ConfigError as exc:
            if _is_shortage(exc):
                raise
            log.warning("authorised key ignored: %s", exc)


def _tell_of_change(before: Mapping[str, Peer], now: Mapping[str, Peer]) -> None:
    """One line for each client that may come in from now on, or in another role, and for each that may no more."""
    from ..telemetry.lines import fields_of  # here: a client tells nobody

    for public in {**before, **now}:
        then, peer = before.get(public), now.get(public)
        if peer is None and then is not None:
            audit_log.info("the key of %s was removed", then.name, extra=fields_of(action="keys", user=then.name))
        elif peer is not None and peer != then:
            text = "the key of %s was added, with the role %s"
            audit_log.info(text, peer.name, peer.role, extra=fields_of(action="keys", user=peer.name))


def _is_shortage(exc: BaseException) -> bool:
    """Whether a file could not be read for lack of descriptors or memory, and not because of the file."""
    cause = exc.__cause__ if isinstance(exc, ConfigError) else exc
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def _read_peer(path: Path, seen: dict[str, str]) -> tuple[str, Peer]:
    """The key in one file, and the client that it belongs to; ``seen``: the names of the keys read before."""
    name = path.name.removesuffix(".pub")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path} has a name that cannot be a user id")
    # In a directory that no other user can enter a public key may be readable; writable it may not be.
    fields = _fields(path, forbidden=0o022)
    key = _checked_key(fields.get("public", ""), path)
    role = _checked_role(fields.get("role", "call"), path)
    if key in seen:
        raise ConfigError(f"{path} holds the same key as {seen[key]}.pub, which counts")
    seen[key] = name
    return key, Peer(name, role)


def _read_host(path: Path) -> str:
    return _read_host_keys(path)[0]


def _read_host_keys(path: Path) -> tuple[str, ...]:
    fields = _fields(path, forbidden=0o022)
    names = [name for name in _KEYS_OF_HOST if name == "public" or name in fields]
    return tuple(_checked_key(fields.get(name, ""), path) for name in names)


def _write_host(path: Path, public_keys: Sequence[str]) -> None:
    lines = (f"{name} = {_checked_key(key, path)}\n" for name, key in zip(_KEYS_OF_HOST, public_keys, strict=False))
    write_private(path, "".join(lines).encode())


_KEYS_OF_HOST = ("public", "next")  # the latter while its key is exchanged for another one


def look_at(directory: Path) -> tuple[list[Path], tuple[object, ...], bool]:
    """The key files of ``directory``, what they look like from outside, and whether that is safely past."""
    infos = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(".pub"):
                with contextlib.suppress(FileNotFoundError):
                    infos.append((entry.path, entry.stat(follow_symlinks=False)))
    infos.sort(key=lambda pair: pair[0])
    newest = max((info.st_ctime_ns for _, info in infos), default=0)
    newest = max(newest, os.stat(directory).st_mtime_ns)
    signature = tuple((path, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in infos)
    return [Path(path) for path, _ in infos], signature, abs(time.time_ns() - newest) > 100_000_000


def _fields(path: Path, *, forbidden: int) -> dict[str, str]:
    """``name = value`` lines; a value may hold ``=`` and ``#``, which Z85 uses."""
    try:
        text = read_private(path, forbidden=forbidden).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a key file: it is not ASCII text") from None  # its bytes may be secret
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _checked_key(key: str, path: Path) -> str:
    try:
        if len(key) == 40 and key.isascii() and len(z85.decode(key)) == 32:
            return key
    except Exception:  # z85 raises KeyError, ValueError or struct.error, by the kind of damage
        pass
    raise ConfigError(f"{path}: a key is 40 characters of Z85 text")  # never the value: it may be a secret


def _checked_role(role: str, path: Path) -> Role:
    if is_role(role):
        return cast(Role, role)
    raise ConfigError(f"{path}: role must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {role!r}")
