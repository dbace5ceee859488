"""``start``: a host in the foreground, or a supervisor of one."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ... import errors
from ...config import BrokerConfig, check_threads
from ...telemetry.settings import LEVELS, OUTPUTS, LogSettings
from ..command import Verb
from ..declared import Declared, makers_and_agents, parse_agents, put_on_path
from ..options import as_json, listen_address, log_format, option
from ..output import say
from ..settings import settings
from ..values import json_line

if TYPE_CHECKING:
    from ...agents.factories.factory import Maker
    from ...broker.listening import Bound
    from ...server.systemd import Notifier
    from ...telemetry.program import Program
    from ..beside import WebBeside

__all__ = ["start"]

log = logging.getLogger(__name__)

EXIT_LIMIT_S = 0.5  # what an agent's exit handlers may take; part of the 2 s after the grace
LAST_LIMIT_S = 1.5  # the same for all of the interpreter's end: some 0.05 s, on a busy machine ten times that


class StartVerb(Verb):
    """``start``. The earlier system told its users to type ``--local-mode False`` and took that for True."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word, value in zip(args, [*args[1:], ""], strict=False):
            name, _, attached = word.partition("=")
            if name == "--local-mode" and (attached or re.fullmatch(r"(?i)true|false|yes|no|on|off|[01]", value)):
                raise click.UsageError("--local-mode takes no value: write --local-mode or --no-local-mode", ctx)
        ctx.meta[__name__] = [word for word in args if word != "--reload"]
        return super().parse_args(ctx, args)


@click.command(cls=StartVerb)
@click.argument("classes", metavar="[MODULE:CLASS]...", nargs=-1)
@settings
@option(
    "--class", "more_classes", multiple=True, metavar="MODULE:CLASS",
    help="The same as an option: a class whose agents clients may make; may be given several times.",
)  # fmt: skip
@option(
    "--agent", "declared", multiple=True, metavar="ID=CLASS", callback=parse_agents,
    help="An agent to make at each start, before the first client is served: ID=CLASS, ID=module:Class, or with "
    "arguments ID=module:Class(limit=3); may be given several times.",
)  # fmt: skip
@option(
    "--app-dir", metavar="DIR", type=click.Path(),
    help="Where modules are imported from; default: the working directory.",
)  # fmt: skip
@option("--restart", is_flag=True, help="Start the host again when it crashes.")
@option("--reload", is_flag=True, help="Start the host anew when a file of the program changes; for development.")
@option("--strict", is_flag=True, help="Refuse to start when an agent file cannot be loaded.")
@option(
    "--log-level", type=click.Choice(LEVELS), default="warning", show_default=True, help="What is logged to stderr."
)
@log_format
@option(
    "--agent-output", type=click.Choice(OUTPUTS), default="log", show_default=True,
    help="What agents print: lines of the log with the ids of the call, lines on stderr as they are, or nothing.",
)  # fmt: skip
@option("--no-log", is_flag=True, help="The same as --log-level off.")
@option(
    "--web", metavar="[HOST:]PORT", callback=listen_address,
    help="Also serve a page that shows the host, on this machine alone; the start line has its link. Its gateway shows "
    "the agents of --agent. See the verb web.",
)  # fmt: skip
@option("--expose", multiple=True, metavar="ID", help="An agent that the gateway of --web shows as well.")
@as_json
@click.pass_context
def start(
    ctx: click.Context, /, classes: tuple[str, ...], more_classes: tuple[str, ...], declared: list[Declared],
    app_dir: str | None, restart: bool, reload: bool, strict: bool, log_level: str, log_format: str,
    agent_output: str, no_log: bool, web: tuple[str, int] | None, expose: tuple[str, ...], as_json: bool,
    **settings: Any,
) -> int:  # fmt: skip
    """Run a host in the foreground, for the agents of the classes that are named, and of those in --agent-dir.

    \b
    as_server start shop:Inventory                          the class Inventory of shop.py, decorated or not
    as_server start --agent 'inv=shop:Inventory(limit=3)'   and an agent of it
    as_server start --agent g=flows:graph                   what the function graph makes, or graph itself
    as_server start --agent-dir agents                      all agent classes in the files of a directory

    When it listens it prints one line with its address to stdout. SIGINT (Ctrl-C), SIGTERM and as_server stop let
    running and queued calls go on for --grace seconds and end it with exit code 0; a second signal ends it at once.
    An agent file that cannot be loaded is reported and left out, unless --strict.

    With --reload a change of a file ends the host in order and starts it anew on the same port.

    With --restart a host that crashes is started again on the same port, with growing pauses; the sixth time within a
    minute it is given up with exit code 70. Of its agents only those of --agent are there again, new.
    """
    from ...discovery import check_system

    check_system()
    check_threads()
    if reload:
        return _keep_fresh(ctx, app_dir, settings)
    log_settings = LogSettings("off" if no_log else log_level, log_format, agent_output)
    if log_settings.mistake:
        raise click.UsageError(f"--log-format {log_format} with --agent-output {agent_output}: {log_settings.mistake}")
    put_on_path(app_dir)
    loaded, agents = makers_and_agents(dict.fromkeys((*classes, *more_classes)), declared)
    config = BrokerConfig(**settings, agents=agents, logs=log_settings)
    if expose and web is None:
        raise click.UsageError("--expose says what the gateway of --web shows: give that, too")
    if web is None:
        status = _start(config, loaded, restart, strict, Announcer(config, as_json))
    else:
        from ..beside import WebBeside  # here: without --web the host need not load what starts programs

        with WebBeside(config.server_id, web, log_format, dict.fromkeys((*agents, *expose)), config.cluster) as beside:
            status = _start(config, loaded, restart, strict, Announcer(config, as_json, beside))
    _exit_in_time(status)  # only now, as the web process may take its time to end
    return status


def _start(config: BrokerConfig, classes: list[Maker], restart: bool, strict: bool, announcer: Announcer) -> int:
    """Begin to log, and run the host here or supervise it."""
    gc.disable()  # to load 100 modules leaves no garbage, but 40 looks for it: 3 ms
    from ... import codec
    from ...agents import loader
    from ...process import signals
    from ...server import logs
    from ...server.systemd import Notifier

    gc.enable()
    signals.show_stacks_on_request()
    signals.keep_sockets_to_ourselves()
    program = logs.begin(config, threaded=not restart)
    assert program is not None
    if strict and config.agent_dir is not None:
        loader.load_agents_from_dir(config.agent_dir, strict=True)  # a file runs once: the host gets these classes
    notifier = Notifier.from_environment()
    if restart:
        return _keep_running(config, classes, announcer, notifier, program)
    if config.types:
        codec.registry.trust(config.types)  # for the results of the calls that agents make
    return _serve(config, classes, announcer, notifier, program)


def _serve(
    config: BrokerConfig, classes: list[Maker], announcer: Announcer, notifier: Notifier, program: Program
) -> int:
    """Run the host in this process until it is stopped."""
    gc.disable()  # as above
    from ...process import signals
    from ...server import serve
    from ...tracing import provider

    gc.enable()
    failures: list[errors.LoadError] = []

    def ready(bound: Bound) -> None:
        _tell_failures(failures)
        announcer.announce(bound, os.getpid(), program)

    def waits() -> None:
        say(f"{config.server_id} lets running and queued calls end, up to {config.grace_s:g} s; Ctrl-C ends them now")

    if config.otel:
        provider.begin(config.server_id)
    try:
        status = serve.serve(
            config, classes, ready, failures=failures, notifier=notifier, own_process=True, waits=waits
        )
    finally:
        _tell_failures(failures)
        provider.flush()
    signals.ignore_stops()  # one that comes only now is a stop like those before, and does not change the status
    return status


def _keep_running(
    config: BrokerConfig, classes: list[Maker], announcer: Announcer, notifier: Notifier, program: Program
) -> int:
    """``start --restart``: this process supervises, and the host is its child."""
    if notifier.watchdog_s is not None:
        raise click.UsageError("--restart hides the host from systemd's watchdog: leave it out, and set Restart= there")
    from ...broker.listening import Bound
    from ...process import signals
    from ...server.launcher import LAUNCH_TIMEOUT_S
    from ...server.supervisor import Supervisor

    def ready(report: dict[str, Any], pid: int) -> None:
        _tell_failures(report["left_out"])
        announcer.announce(Bound(*report["bound"]), pid, program)

    supervisor = Supervisor(config, classes, launch_timeout_s=LAUNCH_TIMEOUT_S, new_session=True, notifier=notifier)
    status = supervisor.run(ready)
    signals.ignore_stops()  # one that comes only now is a stop like those before, and does not change the status
    return status


def _keep_fresh(ctx: click.Context, app_dir: str | None, settings: dict[str, Any]) -> int:
    """``start --reload``: this process watches the files, and the host is its child."""
    from ..reloading import Reloader

    config = BrokerConfig(**settings)
    places = [app_dir or ".", *([config.agent_dir] if config.agent_dir else [])]
    return Reloader(ctx.meta[__name__], config.server_id, places).run()


def _tell_failures(failures: list[Any]) -> None:
    while failures:
        say(f"agent file left out: {failures.pop(0)}")


class Announcer(NamedTuple):
    """Prints the line that says where the host listens, and where the page is."""

    config: BrokerConfig
    as_json: bool
    web: WebBeside | None = None

    def announce(self, bound: Bound, pid: int, program: Program) -> None:
        """Print it to the real stdout."""
        server_id, host, port, ipc, _ = bound
        config, link = self.config, {} if self.web is None else {"web": self.web.link}
        if config.open_to:
            say(f"warning: --insecure: {config.open_to} can call the agents on port {port}")
        if self.as_json:
            text = json_line({"server_id": server_id, "host": host, "port": port, "pid": pid, "ipc": ipc, **link})
        else:
            keys = "without keys" if config.insecure else "with keys"
            where = "on this machine alone" if config.local_mode else f"on all its addresses, {keys}"
            text = f"zmqagents host {server_id} listening on {host}:{port} (pid {pid}), {where}"
            text += "".join(f"; page {url}" for url in link.values())
        try:
            program.say_first(text)
        except OSError as exc:  # a full disk: a program that waits for this line would wait for ever
            raise errors.LaunchError(f"the address of the host cannot be written to stdout: {exc.strerror}") from exc


def _exit_in_time(status: int) -> None:
    """The interpreter waits for threads, exit handlers and ``__del__``: agents' may never end, but the host does."""
    from ...process import signals
    from ...process.end_timer import end_interpreter_within
    from ...server.logs import flush

    def watch() -> None:
        time.sleep(EXIT_LIMIT_S)
        log.warning("ending, although a thread or an exit handler of an agent's is still running")
        flush()
        signals.end_processes()
        os._exit(status)

    threading.Thread(target=watch, name="zmqagents-exit", daemon=True).start()
    end_interpreter_within(LAST_LIMIT_S, status)  # once no thread of Python runs any more
