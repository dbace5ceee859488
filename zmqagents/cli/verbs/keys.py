"""``keys``: the clients that may connect, and the hosts that are trusted."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ... import errors
from ..command import DashVerb, Shell
from ..options import as_json, as_seconds, option
from ..output import say, show, show_facts, show_rows

if TYPE_CHECKING:
    from ...security.keys import KeyStore
    from ...security.roles import Role

__all__ = ["keys"]


FOLLOW_S = 1.0  # how often `import --follow` reads its file


class KeyVerb(DashVerb):
    dashed = re.compile(r"-.{39}$")  # Z85 text may begin with any of its characters


@click.group(cls=Shell)
def keys() -> None:
    """Show and change which clients may connect: the key store of this user."""


def _store() -> KeyStore:
    from ...security.keys import KeyStore

    return KeyStore.open()


@keys.command("path")
@as_json
def keys_path(as_json: bool) -> None:
    """Print the directory of the key store, which is made if missing (ZMQAGENTS_KEYS moves it)."""
    path = str(_store().path)
    show({"path": path} if as_json else path, as_json)


@keys.command("show")
@as_json
def keys_show(as_json: bool) -> None:
    """Print the public keys of this user.

    To call a host of another user or machine, add your client key there (keys add NAME KEY) and its server key
    here (keys add HOST:PORT KEY). The door key, once as_server web has made one, is that of this user's web processes
    (keys add NAME KEY --role door, on the other machine).
    """
    store = _store()
    public = {"client": store.client_keypair().public}
    public |= dict(zip(("server", "server_also"), store.server_keys(), strict=False))
    if store.has_door():
        public["door"] = store.door_keypair().public
    if as_json:
        show(public, True)
    else:
        show_facts(public)


@keys.command("add", cls=KeyVerb)
@click.argument("name")
@click.argument("public_key", metavar="KEY")
@option(
    "--role", type=click.Choice(["call", "view", "admin", "door"]), default="call", show_default=True,
    help="What NAME may do: call agents; only see, everything; all; or, a web process, connect in the name of others.",
)  # fmt: skip
@as_json
def keys_add(name: str, public_key: str, role: str, as_json: bool) -> None:
    """Let the client NAME with its public KEY call the hosts of this user; or, with HOST:PORT for NAME, know the
    KEY of that host. An earlier key of the name is replaced. Hosts that run see it within a second.
    """
    if ":" in name:
        _store().remember_host(*_host_and_port(name), public_key)
    else:
        _store().authorize(name, public_key, cast("Role", role))
    _done("added", name, as_json)


@keys.command("token")
@click.argument("name", required=False)
@as_json
def keys_token(name: str | None, as_json: bool) -> None:
    """Print a bearer token for web processes of this user: it stands for the key NAME, or for that of this user.

    A request with it (Authorization: Bearer TOKEN, or pasted into the page of as_server web) may do what the key's role
    allows. It ends when the key is removed or replaced. Who has the token needs no key: keep it as a password.
    """
    from ...security.keys import SELF
    from ...security.tokens import token_of

    token = token_of(_store(), name or SELF)
    show({"name": name or SELF, "token": token} if as_json else token, as_json)


@keys.command("list")
@as_json
def keys_list(as_json: bool) -> None:
    """List the clients that may connect, and the hosts elsewhere whose keys are known."""
    store = _store()
    rows: list[dict[str, Any]] = []
    rows += [{"name": peer.name, "role": peer.role, "public": key} for key, peer in store.authorized().items()]
    rows += [{"name": f"{host}:{port}", "role": "host", "public": key} for host, port, key in store.known_hosts()]
    rows.sort(key=lambda row: (row["role"] == "host", row["name"]))
    show_rows(rows, ("name", "role", "public"), as_json, "no keys")


@keys.command("export")
@click.argument("file", default="-")
@as_json
def keys_export(file: str, as_json: bool) -> None:
    """Write all keys of this user into FILE, or to stdout, for the other hosts of a cluster.

    The file has the secret keys, too: whoever has it can pose as these hosts. It is readable by you alone.
    """
    from ...security import bundle, private

    text = bundle.exported(_store())
    if file == "-":
        click.echo(text, nl=False)
        return
    private.write_private(file, text.encode())
    _done("exported", file, as_json)


@keys.command("import")
@click.argument("file", default="-")
@option("--replace", is_flag=True, help="Also if the keys here are of other hosts; those are lost.")
@option("--follow", is_flag=True, help="Go on, and do it again whenever FILE has changed, until Ctrl-C or SIGTERM.")
@as_json
def keys_import(file: str, replace: bool, follow: bool, as_json: bool) -> None:
    """Make the keys of this user those of FILE, or stdin, which keys export has written.

    What FILE does not have is removed. Hosts that run see new and removed clients within a second; a server key
    holds for hosts that start.
    """
    from ...security import bundle
    from ...security.keys import KeyStore

    if follow and file == "-":
        raise click.UsageError("--follow needs a FILE")
    place = KeyStore.default_place()
    bundle.imported(_bundle_of(file), place, replace=replace)
    _done("imported", file, as_json)
    if follow:
        _follow(file, place)


def _bundle_of(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise errors.ConfigError(f"{file} cannot be read: {exc.strerror}") from exc


def _follow(file: str, place: Path) -> None:
    """A file that is not whole, or gone for a moment, changes nothing: it is said once, and looked at again."""
    from ...security import bundle

    done, trouble = _bundle_of(file), ""
    while True:
        time.sleep(FOLLOW_S)
        try:
            text = _bundle_of(file)
            if text != done:
                bundle.imported(text, place, replace=True)
                done = text
                say(f"imported {file} again")
            trouble = ""
        except errors.ConfigError as exc:
            if str(exc) != trouble:
                trouble = str(exc)
                say(f"nothing is changed: {trouble}")


@keys.command("rotate")
@option(
    "--after", default="3600", show_default=True, metavar="SECONDS", callback=as_seconds,
    help="How long clients have, to be told of the new key.",
)  # fmt: skip
@as_json
def keys_rotate(after: float | None, as_json: bool) -> None:
    """Make a second server key, and let hosts tell their clients of it.

    Hosts that start in --after seconds or later prove the new key to their clients; those that run go on with the
    former one. Restart them then, one after the other, and end it by keys retire.
    """
    from ...security import rotation

    if after is None:
        raise click.UsageError("--after is a number of seconds")
    pair, proved_from = rotation.rotate(_store(), after)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(proved_from))
    if as_json:
        show({"public": pair.public, "proved_from": proved_from}, True)
    else:
        show_facts({"next": pair.public, "proved by hosts that start from": when})


@keys.command("retire")
@as_json
def keys_retire(as_json: bool) -> None:
    """Let the former server key be valid no more. It is refused while a host of this machine still proves it."""
    from ... import discovery
    from ...security import rotation

    hosts = [(host.server_id, host.server_key) for host in discovery.list_hosts()]
    public = rotation.retire(_store(), hosts)
    show({"server": public} if as_json else f"the server key is {public}", as_json)


@keys.command("remove")
@click.argument("name")
@as_json
def keys_remove(name: str, as_json: bool) -> None:
    """Refuse the client NAME from now on; or, with HOST:PORT, forget that host's key."""
    if ":" in name:
        _forget(name)
    elif not _store().revoke(name):
        raise _no_such_key(name)
    _done("removed", name, as_json)


@keys.command("forget")
@click.argument("name", metavar="HOST:PORT")
@as_json
def keys_forget(name: str, as_json: bool) -> None:
    """Know the key of the host at HOST:PORT no more."""
    _forget(name)
    _done("forgot", name, as_json)


def _done(what: str, name: str, as_json: bool) -> None:
    show({what: name} if as_json else f"{what} {name}", as_json)


def _forget(name: str) -> None:
    host, port = _host_and_port(name)
    if not _store().forget_host(host, port):
        raise _no_such_key(name)


def _host_and_port(name: str) -> tuple[str, int]:
    host, colon, port = name.rpartition(":")
    if not colon or not port.isdecimal():
        raise click.UsageError(f"{name!r} is no HOST:PORT")
    return host, int(port)


def _no_such_key(name: str) -> errors.ConfigError:
    return errors.ConfigError(f"there is no key of {name!r}; as_server keys list shows those there are")
