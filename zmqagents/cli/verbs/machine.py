"""This machine's side: what ``start`` would use, and the completion of the shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from ... import errors
from ...config import BrokerConfig, without_password
from ...version import __version__
from ..command import Verb, name_the_option, origin_of
from ..config_file import beside_the_options, file_of
from ..options import as_json
from ..output import say, show, show_facts, show_table
from ..settings import settings

__all__ = ["completion", "doctor"]


@click.command(cls=Verb)
@settings
@as_json
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **settings: Any) -> int:
    """Show what start would use and where each setting comes from, the key store, and the hosts that run.

    Takes the options of start; of zmqagents.toml all is shown. Exit code 2 if something stands in the way of starting.
    """
    problems: list[str] = []

    def attempt(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except errors.ZmqAgentsError as exc:
            problems.append(name_the_option(ctx, " ".join(str(exc).split())))
            return None

    from ... import discovery
    from ...execution import file_roots
    from ...security import keys

    config = attempt(lambda: BrokerConfig(**settings))
    store = attempt(keys.KeyStore.open)
    if store is not None:
        problems += store.problems()
        if config is not None:
            attempt(lambda: file_roots.hold_apart(config.file_roots, store.path))
    report = {
        "versions": _versions(),
        "settings": {
            **{name: _with_origin(ctx, name, value) for name, value in settings.items()},
            **{name: {"value": value, "origin": file_of(ctx)} for name, value in beside_the_options(ctx)},
        },
        "key_store": str(store.path) if store is not None else None,
        # Of the longest name that a host may have: the whole path must fit into the address of a socket.
        "runtime_dir": attempt(lambda: os.path.dirname(discovery.ipc_path("x" * discovery.MAX_NAME_CHARS))),
        "hosts": [record._asdict() for record in discovery.list_hosts()],
        "problems": problems,
    }
    if as_json:
        show(report, True)
    else:
        _show_report(report)
    return 2 if problems else 0


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": ".".join(map(str, sys.version_info[:3])), "zmqagents": __version__}
    for name in ("pyzmq", "msgpack", "cachetools", "click", "redis", "cloudpickle", "numpy", "openai"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _with_origin(ctx: click.Context, name: str, value: Any) -> dict[str, Any]:
    param = next(param for param in ctx.command.params if param.name == name)
    source = ctx.get_parameter_source(name)
    origin = origin_of(ctx, param).partition(": ")[0] or (
        "argument" if source is ParameterSource.COMMANDLINE else "default"
    )
    return {"value": without_password(value) if name.endswith("_url") and value else value, "origin": origin}


def _show_report(report: dict[str, Any]) -> None:
    show_facts({
        **report["versions"],
        "key store": report["key_store"] or "see below",
        "runtime directory": report["runtime_dir"] or "see below",
        "hosts": ", ".join(f"{r['server_id']} at {r['host']}:{r['port']}" for r in report["hosts"]) or "none running",
    })  # fmt: skip
    click.echo()
    rows = [{"setting": name, **found} for name, found in report["settings"].items()]
    show_table(rows, ("setting", "value", "origin"))
    for problem in report["problems"]:
        say(f"problem: {problem}")


@click.command(cls=Verb)
@click.argument("shell_name", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell_name: str) -> None:
    """Print the script that completes as_server in bash, zsh or fish.

    \b
    bash   eval "$(as_server completion bash)"                                        in ~/.bashrc
    zsh    eval "$(as_server completion zsh)"                                         in ~/.zshrc
    fish   as_server completion fish > ~/.config/fish/completions/as_server.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell_name)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "as_server", "_AS_SERVER_COMPLETE").source())
