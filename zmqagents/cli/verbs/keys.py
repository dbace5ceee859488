"""``keys``: the clients that may connect, and the hosts that are trusted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import click

from ... import errors
from ..command import DashVerb, Shell
from ..options import as_json, option
from ..output import show, show_facts, show_rows

if TYPE_CHECKING:
    from ...security.keys import KeyStore
    from ...security.roles import Role

__all__ = ["keys"]


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
    public = {"client": store.client_keypair().public, "server": store.server_keypair().public}
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
