"""``zmqagents.toml``: options that are not typed each time.

    [start]                             # for start and doctor: each option by its name, with _ or - between words
    port = 12010
    agent_dir = "agents"
    agent = ["reader=shop:Reader(docs='/docs')"]

    [client]                            # for every verb that asks a host
    host = "big.example"
    port = 12010

The file is that of ``--config`` or ``AS_SERVER_CONFIG``, or else the one of this name in the working directory. What is
typed wins, then what the environment says, then the file. Paths in it are relative to the file. A file that is only
found, and not named, has to belong to this user or to root: what it says may run code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import ConfigError, did_you_mean

__all__ = ["CLIENT_SETTINGS", "FILE_NAME", "beside_the_options", "file_of", "read_config", "with_config"]

F = TypeVar("F", bound=Callable[..., Any])
Settings = dict[str, dict[str, Any]]

FILE_NAME = "zmqagents.toml"
CLIENT_SETTINGS = ("host", "port", "server_id", "timeout", "types", "plain_types", "traceback")
PATHS = frozenset({"agent_dir", "model_config_path", "file_roots", "app_dir"})
MAX_BYTES = 1_048_576


def with_config(section: str) -> Callable[[F], F]:
    """Add ``--config`` to a verb, whose options then have their defaults from ``section`` of the file."""

    def read(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
        named, path = path is not None, path or (FILE_NAME if os.path.lexists(FILE_NAME) else None)
        if path is not None:
            ctx.meta[__name__] = path
            try:
                ctx.default_map = dict(_defaults(ctx, section, Path(path), is_named=named))
            except ConfigError as exc:
                raise click.UsageError(str(exc), ctx) from exc

    return click.option(
        "--config", metavar="FILE", envvar="AS_SERVER_CONFIG", type=click.Path(), is_eager=True, expose_value=False,
        callback=read, help=f"Settings are read from this file; default: {FILE_NAME} here, if there is one.",
    )  # fmt: skip


def read_config(path: Path) -> Settings:
    """The sections of a file. Raises ConfigError, which names the file and the line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = path.read_bytes()[: MAX_BYTES + 1]
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        found: Settings = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc
    for name, section in found.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name!r} stands in no section: write [start] or [client] above it")
        if name not in ("start", "client"):
            raise ConfigError(f"{path}: {name!r} is not a section: there are [start] and [client]")
    return found


def file_of(ctx: click.Context) -> str:
    """The file that gave ``ctx`` its defaults."""
    return str(ctx.meta.get(__name__, FILE_NAME))


def beside_the_options(ctx: click.Context) -> Iterator[tuple[str, Any]]:
    """What the file of ``ctx`` says and its verb has no option for: for start alone, or for those who ask a host."""
    path = ctx.meta.get(__name__)
    own = {param.name for param in ctx.command.params}
    names = _names(ctx, "start")
    for section, given in (read_config(Path(path)) if path is not None else {}).items():
        for key, value in given.items():
            if section != "start" or names.get(key.replace("-", "_")) not in own:
                yield f"[{section}] {key}", value


def _defaults(ctx: click.Context, section: str, path: Path, *, is_named: bool) -> Iterator[tuple[str, Any]]:
    """The names of the parameters of this verb that the file sets, with their values."""
    if not is_named:
        _check_owner(path)
    names = _names(ctx, section)
    own = {param.name: param for param in ctx.command.params}
    for key, value in read_config(path).get(section, {}).items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            raise ConfigError(f"{path}: [{section}] has no setting {key!r}{did_you_mean(key, names)}")
        if name in own and getattr(own[name], "multiple", False) and not isinstance(value, (list, dict)):
            form = '{ID = "module:Class"}' if key == "agent" else f"[{value!r}]"
            raise ConfigError(f"{path}: [{section}] {key} has several values: {key} = {form}, not {value!r}")
        if name in own:
            yield name, _as_typed(value, path.parent if name in PATHS else None)


def _names(ctx: click.Context, section: str) -> dict[str, str]:
    """What a file may say in ``section``, and the parameters that it means."""
    if section == "client":
        return {name: name for name in CLIENT_SETTINGS}
    root = ctx.find_root().command
    command = root.commands["start"] if isinstance(root, click.Group) else ctx.command
    names = {}
    for param in command.params:
        for word in (*param.opts, *param.secondary_opts) if isinstance(param, click.Option) else ():
            if word.startswith("--") and param.name and param.name != "config":
                names[word[2:].replace("-", "_")] = param.name
    return names


def _as_typed(value: Any, base: Path | None) -> Any:
    """A value of the file as the shell would have it; a path from the place of the file."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        return [_as_typed(item, base) for item in value]
    if isinstance(value, dict):  # agent = {reader = "Reader"}
        return [f"{key}={item}" for key, item in value.items()]
    return str(value) if base is None else str(base / str(value))


def _check_owner(path: Path) -> None:
    """Raise ConfigError for a file, or a link to one, that another user could have put here."""
    for info in (path.lstat(), path.stat()) if path.exists() and hasattr(os, "geteuid") else ():
        if info.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path} belongs to user {info.st_uid}: say --config {path} if it is meant all the same")
