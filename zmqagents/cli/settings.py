"""The options of a host, for ``start`` and ``doctor``: one for each field of `BrokerConfig` that the shell can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..config import MEAN_IT, MEBIBYTE, BrokerConfig
from .config_file import with_config
from .options import F, megabytes, option

__all__ = ["settings"]


def _insecure(ctx: click.Context, param: click.Parameter, text: Any) -> bool | str:
    """The callback of ``--insecure``, which may stand alone; from the environment it is a word."""
    word = str(text).lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("", "false", "0", "no", "off", "f", "n"):
        return False
    return str(text)  # which BrokerConfig judges


def _labels(ctx: click.Context, param: click.Parameter, texts: Any) -> dict[str, str]:
    """The callback of ``--label``."""
    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not name or not mark:
            raise click.BadParameter(f"a label is NAME=VALUE, such as zone=a, not {text!r}", ctx, param)
        found[name] = value
    return found


def _setting(name: str, words: str, *others: str, **attributes: Any) -> Callable[[F], F]:
    """The option for one field of `BrokerConfig`; the field's default is the option's."""
    default: Any = getattr(BrokerConfig, name, ())  # one with a factory may be given several times
    shown: bool | str = default not in (None, "", False, ())
    if attributes.get("type") is megabytes:
        shown = f"{default / MEBIBYTE:g}"
        attributes["metavar"] = "MIB"
    return option(words, *others, name, default=default, show_default=shown, **attributes)


_SETTINGS: tuple[Callable[[Any], Any], ...] = (
    _setting("host", "--host", help="Name or address that clients are told to use."),
    _setting("port", "--port", type=int, help="TCP port; 0 or none: a free one, which is printed."),
    _setting("capacity", "--capacity", type=int, help="Agents that may run at the same moment."),
    _setting(
        "isolation",
        "--isolation",
        type=click.Choice(["thread", "process", "pool"]),
        help="Where agents run: in threads of the host, each in a process of its own, or in shared processes.",
    ),
    _setting("processes", "--processes", type=int, help="Shared processes of --isolation pool; 0: one for each core."),
    _setting("pool_type", "--pool-type", type=click.Choice(["local", "redis"]), help="Where results are kept."),
    _setting("redis_url", "--redis-url", help="Redis for --pool-type redis."),
    _setting("redis_namespace", "--redis-namespace", metavar="NAME", help="Keeps the results of projects apart."),
    _setting(
        "cluster",
        "--cluster",
        metavar="NAME",
        help="Join the cluster NAME, whose hosts act as one; with --redis-url.",
    ),
    _setting("lease_s", "--lease", type=float, help="Seconds after which a member that is silent is taken for dead."),
    _setting(
        "labels",
        "--label",
        multiple=True,
        callback=_labels,
        metavar="NAME=VALUE",
        help="Says what this member has, for agents that ask for it; may be given several times.",
    ),
    _setting("max_pool_size", "--max-pool-size", type=int, help="Finished results kept."),
    _setting("max_expire_time", "--max-expire-time", "--max-expire", type=float, help="Seconds a result is kept."),
    _setting("max_timeout_seconds", "--max-timeout-seconds", type=float, help="Longest one fetch may wait, seconds."),
    _setting("local_mode", "--local-mode/--no-local-mode", help="Listen for this machine only."),
    _setting("max_agents", "--max-agents", type=int, help="Agents on the host, of all users together."),
    _setting("model_config_path", "--model-config-path", metavar="FILE", help="JSON file of model configurations."),
    _setting("agent_dir", "--agent-dir", metavar="DIR", help="Directory of .py files with agent classes."),
    _setting("server_id", "--server-id", metavar="ID", help="Name of the host; default: a new one."),
    _setting("studio_url", "--studio-url", metavar="URL", help="Studio to register with."),
    _setting("grace_s", "--grace", type=float, help="Seconds that calls may go on when the host is stopped."),
    _setting(
        "hang_limit_s",
        "--hang-limit",
        type=float,
        metavar="SECONDS",
        help="End the host when it has answered nothing for so long: code in C may keep it from everything.",
    ),
    _setting(
        "insecure",
        "--insecure",
        type=str,
        is_flag=False,
        flag_value="true",
        callback=_insecure,
        metavar=f"[={MEAN_IT}]",
        help=f"TCP without any key: with --local-mode, or ={MEAN_IT} for every interface.",
    ),
    _setting(
        "file_roots",
        "--file-root",
        multiple=True,
        type=click.Path(),
        metavar="DIR",
        help="Directory whose files may be downloaded; may be given several times.",
    ),
    _setting(
        "types",
        "--types",
        multiple=True,
        metavar="PACKAGE",
        help="Package whose classes arrive as themselves; it may be imported. May be given several times.",
    ),
    _setting("plain_types", "--plain-types", is_flag=True, help="Classes that are not known arrive in plain form."),
    _setting("max_message_bytes", "--max-message-mb", type=megabytes, help="Largest message, arguments or result."),
    _setting(
        "max_structured_bytes",
        "--max-structured-mb",
        type=megabytes,
        help="Of a message, what is not large bytes, text or arrays; in memory it may take 32 times as much.",
    ),
    _setting("max_pool_bytes", "--max-pool-mb", type=megabytes, help="Finished results kept, all together."),
    _setting("max_queued_bytes", "--max-queued-mb", type=megabytes, help="Arguments of calls that wait, in all."),
)


def settings(function: F) -> F:
    """The options of a host; the command gets them by their `BrokerConfig` names."""
    for add in (with_config("start"), *reversed(_SETTINGS)):
        function = add(function)
    return function
