"""``as_server``: start a host from the shell, look at it, call its agents, stop it.

    init                                   a small project to begin with
    start                                  run a host in the foreground until SIGINT, SIGTERM or `stop`
    stop status agents calls dump children one host: end it, look at it
    describe                               the methods of an agent or a class
    health logs top web                    whether it is well, its log, its figures, both for others to read
    create delete call result cancel       its agents and their calls
    download                               its files
    hosts where move drain events upgrade  a cluster: its hosts, where its agents are
    bench                                  put load on it
    stubs                                  types of proxies, for a type checker
    keys doctor completion                 this machine's side: keys, settings, the shell

Which host: ``--port`` (and ``--host``), or ``--server-id``, or neither when one host of this user runs on this
machine. Results go to stdout, messages to stderr; ``--json`` gives one line of JSON. Every option can be set by a
variable ``AS_SERVER_<OPTION>``; what is typed wins. The variables are named one by one, not by click's own
prefix rule, so that ``AS_SERVER_PORT`` serves every verb and ``AS_SERVER_VERSION`` is no option.

    exit code   0 done                    3 cannot listen             6 timed out
                1 the agent raised        4 not reachable             130 interrupted
                2 usage or settings       5 refused key             7 not ready
                                                                    70 start --restart: given up

What is wrong is one line on stderr and no traceback of zmqagents; `Verb` and `Shell` see to both. A verb's module is
loaded when the verb is asked for, and imports what it needs when it runs: ``as_server --version`` loads no ZeroMQ,
``as_server start`` nothing that it does not use.

    command config_file options settings where     what the verbs stand on
    values output
    verbs/                                         the verbs

May import all but ``__main__``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence

import click

from ..version import __version__
from .command import Shell, unknown_variables
from .output import say

__all__ = ["main", "shell"]

# verb -> the module of this package that has it, in the order of the help
_MODULE_OF = {
    "init": "init", "start": "start",
    "stop": "host", "status": "host", "agents": "host", "calls": "host", "dump": "host",
    "children": "host", "describe": "describe", "health": "watch", "logs": "watch", "top": "watch", "web": "web",
    "create": "calls", "delete": "calls", "call": "calls", "result": "calls", "cancel": "calls", "download": "calls",
    "hosts": "cluster", "where": "cluster", "move": "cluster", "drain": "cluster", "events": "cluster",
    "upgrade": "cluster",
    "bench": "bench", "keys": "keys", "stubs": "stubs", "doctor": "machine", "completion": "machine",
}  # fmt: skip


class _Verbs(Mapping[str, click.Command]):
    """The verbs by their names, each loaded when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        verb: click.Command = getattr(importlib.import_module(f".verbs.{_MODULE_OF[name]}", __name__), name)
        return verb

    def __contains__(self, name: object) -> bool:
        return name in _MODULE_OF

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULE_OF)

    def __len__(self) -> int:
        return len(_MODULE_OF)


@click.group(
    name="as_server", cls=Shell, commands=_Verbs(), invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.version_option(__version__, prog_name="as_server", message="%(prog)s %(version)s")
@click.pass_context
def shell(ctx: click.Context) -> None:
    """Host Python agents and call them from anywhere.

    \b
    as_server init DIR                       make a small project
    as_server start --agent-dir DIR          run a host here
    as_server create Reader docs=/docs       make an agent of a class in DIR
    as_server call reader reply "why?"       call it
    as_server stop                           stop the host

    Each option can also be set as AS_SERVER_<OPTION>, for example AS_SERVER_PORT=7411, or in a file zmqagents.toml
    here: [start] is for start, [client] for the verbs that ask a host. Without --port the verbs
    mean the one host of yours that runs on this machine.

    \b
    Exit codes: 0 done, 1 the agent raised (or the host could not finish the call), 2 usage, settings or an
    unknown name, 3 cannot listen, 4 not reachable, 5 refused key, 6 timed out, 7 not ready, 70 given up after too
    many crashes, 130 interrupted.

    Tab completion: eval "$(as_server completion bash)", or zsh, or fish.
    """
    for line in unknown_variables(shell):
        say(f"warning: {line}")
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
        ctx.exit(2)


def main(args: Sequence[str] | None = None) -> None:
    """The command ``as_server``. Does not return: it exits with the code of the verb."""
    shell.main(args, prog_name="as_server")
