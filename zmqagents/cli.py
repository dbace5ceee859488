"""``as_server``: start a host from the shell, look at it, call its agents, stop it.

    start                                  run a host in the foreground until SIGINT, SIGTERM or `stop`
    stop status agents calls               one host: end it, look at it
    create delete call result cancel       its agents and their calls
    download                               its files
    bench                                  put load on it
    keys doctor completion                 this machine's side: keys, settings, the shell

Which host: ``--port`` (and ``--host``), or ``--server-id``, or neither when one host of this user runs on this
machine. Results go to stdout, messages to stderr; ``--json`` gives one line of JSON. Every option can be set by a
variable ``AS_SERVER_<OPTION>``; what is typed wins. The variables are named one by one, not by click's own
prefix rule, so that ``AS_SERVER_PORT`` serves every verb and ``AS_SERVER_VERSION`` is nobody's option.

    exit code   0 done                    3 cannot listen             6 timed out
                1 the agent raised        4 not reachable             130 interrupted
                2 usage or settings       5 refused key             70 start --restart: given up

What is wrong is one line on stderr and never a traceback of ours; `Verb` and `Shell` see to both. Verbs import what
they need when they run: ``as_server --version`` loads no ZeroMQ, ``as_server start`` nothing that it does not use.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import keyword
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from . import __version__, errors
from .config import DEFAULT_TIMEOUT_S, END_WAIT_S, MEAN_IT, MEBIBYTE, BrokerConfig, without_password

if TYPE_CHECKING:
    from .broker import Bound
    from .endpoints import ConnectionFile
    from .loadgen import Interval
    from .proxy import AgentProxy, RpcClient
    from .result import AsyncResult
    from .security import KeyStore
    from .systemd import Notifier

__all__ = ["main", "shell"]

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_LIMIT_S = 0.5  # what an agent's exit handlers may take; part of the 2 s after the grace
LOOK_EVERY_S = 0.02  # how often `stop` looks whether it has

# The first that fits counts: an agent's own TimeoutError is both an AgentCallError and a TimeoutError.
_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.AgentCallError, 1),
    (errors.AuthenticationError, 5),
    (errors.PermissionRefused, 5),
    (errors.CallTimeout, 6),
    (errors.ConfigError, 2),
    (errors.LoadError, 2),
    (errors.MissingExtra, 2),
    (errors.UnknownAgent, 2),
    (errors.UnknownClass, 2),
    (errors.UnknownFile, 2),
    (errors.UnknownMethod, 2),
    (errors.UnknownTask, 2),
    (errors.AgentExists, 2),
    (errors.LaunchError, 3),
    (ConnectionError, 4),  # HostUnreachable, HostLost, HostStopping, CallLost, StoreUnavailable
)


# ---------------------------------------------------------------- commands and what goes wrong in them


class Failure(click.ClickException):
    """An error of the package as the shell shows it: one line, an exit code."""

    def __init__(self, context: click.Context, error: errors.ZmqAgentsError) -> None:
        super().__init__(str(error))
        self.status = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
        self._context = context
        self._error = error

    def format_message(self) -> str:
        """``TypeName: message`` of what an agent raised; else the verb and what is wrong, in the shell's words."""
        error = self._error
        if isinstance(error, errors.AgentCallError):
            trace = error.remote_traceback if self._context.params.get("traceback") else ""
            return f"{trace.rstrip()}\n{error}" if trace else str(error)
        text = " ".join(str(error).split())
        if isinstance(error, errors.ConfigError):
            text = _name_the_option(self._context, text)
        return f"{self._context.command_path}: {text}"


class Verb(click.Command):
    """A command whose errors are one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.ZmqAgentsError as exc:
            raise Failure(ctx, exc) from exc


class StartVerb(Verb):
    """``start``. The earlier system told its users to type ``--local-mode False`` and took that for True."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option, value in zip(args, [*args[1:], ""], strict=False):
            name, _, attached = option.partition("=")
            if name == "--local-mode" and (attached or re.fullmatch(r"(?i)true|false|yes|no|on|off|[01]", value)):
                raise click.UsageError("--local-mode takes no value: write --local-mode or --no-local-mode", ctx)
        return super().parse_args(ctx, args)


class DashVerb(Verb):
    """A verb some of whose arguments begin with a dash, as ``dashed`` says, and are no options for that."""

    dashed = re.compile(r"-\d")  # a negative number

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts}
        marked, previous = [], ""
        for arg in args:
            # No argument of a process holds a NUL, so this is a mark that nobody can have typed.
            is_argument = self.dashed.match(arg) and previous not in with_value
            marked.append(f"\0{arg}" if is_argument else arg)
            previous = arg
        rest = super().parse_args(ctx, marked)
        for name, value in ctx.params.items():
            if isinstance(value, str):
                ctx.params[name] = value.lstrip("\0")
            elif isinstance(value, tuple):
                ctx.params[name] = tuple(text.lstrip("\0") for text in value)
        return rest


class KeyVerb(DashVerb):
    dashed = re.compile(r"-.{39}$")  # Z85 text may begin with any of its characters


class Shell(click.Group):
    """A group that lists its verbs in the order of their definition and says in one line what is wrong."""

    command_class = Verb
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **more: Any) -> Any:
        more["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a text that the terminal cannot show is no error
        try:
            status = super().main(*args, **more)
        except click.UsageError as exc:
            click.echo(_one_line(exc), err=True)
            status = exc.exit_code
        except Failure as exc:
            click.echo(exc.format_message(), err=True)
            status = exc.status
        except click.Abort:
            status = INTERRUPTED
        sys.exit(status if isinstance(status, int) else 0)


def _one_line(exc: click.UsageError) -> str:
    path = exc.ctx.command_path if exc.ctx is not None else "as_server"
    if isinstance(exc, click.BadParameter) and exc.ctx is not None and exc.param is not None:
        variable = _variable_of(exc.ctx, exc.param)
        exc.param_hint = f"'{variable}'" if variable else exc.param_hint
    return f"{path}: {' '.join(exc.format_message().split())} (see {path} --help)"


def _variable_of(ctx: click.Context, param: click.Parameter) -> str:
    """The environment variable that gave ``param`` its value, "" if none did."""
    from_environment = param.name and ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT
    return str(param.envvar) if from_environment else ""


def _name_the_option(ctx: click.Context, text: str) -> str:
    """A `ConfigError` begins with the name of a setting; here that is an option or a variable."""
    field = re.match(r"\w*", text)
    for param in ctx.command.params:
        if field and isinstance(param, click.Option) and param.name == field.group():
            return (_variable_of(ctx, param) or param.opts[0]) + text[field.end() :]
    return text


# ---------------------------------------------------------------- options


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """The callback of options that are a number of seconds, 0 or more, or ``none`` for no limit."""
    if text is None or text.lower() == "none":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise click.BadParameter(f"{text!r} is not a number of seconds, 0 or more, or 'none'", ctx, param)
    return seconds


def megabytes(value: str | int) -> int:
    """The type of options that are a size: MiB on the command line, bytes inside (and so in the default)."""
    if isinstance(value, int):
        return value
    try:
        size = float(value) * MEBIBYTE
    except ValueError:
        size = math.nan
    if not 1 <= size < 2**60:
        raise click.BadParameter(f"{value!r} is not a number of MiB above 0")
    return int(size)


def _insecure(ctx: click.Context, param: click.Parameter, text: Any) -> bool | str:
    """The callback of ``--insecure``, which may stand alone; from the environment it is a word."""
    word = str(text).lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("", "false", "0", "no", "off", "f", "n"):
        return False
    return str(text)  # which BrokerConfig judges


def _declarations(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
    """The callback of ``--agent ID=CLASS``."""
    agents: dict[str, Any] = {}
    for text in texts:
        agent_id, _, class_name = text.partition("=")
        if not agent_id or not class_name:
            raise click.BadParameter(f"{text!r} is not ID=CLASS", ctx, param)
        if agent_id in agents:
            raise click.BadParameter(f"{agent_id!r} is given twice", ctx, param)
        agents[agent_id] = (class_name, {})
    return agents


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option that may also come from the environment, as ``AS_SERVER_<OPTION>``."""
    words = names[0].partition("/")[0].lstrip("-").replace("-", "_")
    return click.option(*names, envvar=f"AS_SERVER_{words.upper()}", **attributes)


def _setting(name: str, words: str, *others: str, **attributes: Any) -> Callable[[F], F]:
    """The option for one field of `BrokerConfig`; the field's default is the option's."""
    default = getattr(BrokerConfig, name)
    shown: bool | str = default not in (None, "", False, ())
    if attributes.get("type") is megabytes:
        shown = f"{default / MEBIBYTE:g}"
        attributes["metavar"] = "MIB"
    return option(words, *others, name, default=default, show_default=shown, **attributes)


_SETTINGS: tuple[Callable[[Any], Any], ...] = (
    _setting("host", "--host", help="Name or address that clients are told to use."),
    _setting("port", "--port", type=int, help="TCP port; 0 or none: a free one, which is printed."),
    _setting("capacity", "--capacity", type=int, help="Agents that may run at the same moment."),
    _setting("pool_type", "--pool-type", type=click.Choice(["local", "redis"]), help="Where results are kept."),
    _setting("redis_url", "--redis-url", help="Redis for --pool-type redis."),
    _setting("redis_namespace", "--redis-namespace", metavar="NAME", help="Keeps the results of projects apart."),
    _setting("max_pool_size", "--max-pool-size", type=int, help="Finished results kept."),
    _setting("max_expire_time", "--max-expire-time", "--max-expire", type=float, help="Seconds a result is kept."),
    _setting("max_timeout_seconds", "--max-timeout-seconds", type=float, help="Longest one fetch may wait, seconds."),
    _setting("local_mode", "--local-mode/--no-local-mode", help="Listen for this machine only."),
    _setting("model_config_path", "--model-config-path", metavar="FILE", help="JSON file of model configurations."),
    _setting("agent_dir", "--agent-dir", metavar="DIR", help="Directory of .py files with agent classes."),
    _setting("server_id", "--server-id", metavar="ID", help="Name of the host; default: a new one."),
    _setting("studio_url", "--studio-url", metavar="URL", help="Studio to register with."),
    _setting("grace_s", "--grace", type=float, help="Seconds that calls may go on when the host is stopped."),
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
    _setting("max_message_bytes", "--max-message-mb", type=megabytes, help="Largest message, arguments or result."),
    _setting("max_pool_bytes", "--max-pool-mb", type=megabytes, help="Finished results kept, all together."),
    _setting("max_queued_bytes", "--max-queued-mb", type=megabytes, help="Arguments of calls that wait, in all."),
)


def settings(function: F) -> F:
    """The options of a host; the command gets them by their `BrokerConfig` names."""
    for add in reversed(_SETTINGS):
        function = add(function)
    return function


def on_host(function: F) -> F:
    """The options that say which host is meant: ``host``, ``port`` and ``server_id``."""
    for add in (
        option("--server-id", metavar="ID", help="The host of this id on this machine."),
        option("--port", type=click.IntRange(0, 65535), help="Its TCP port; default: the one host that runs here."),
        option("--host", default="localhost", show_default=True, help="Where it is."),
    ):
        function = add(function)
    return function


as_json = option("--json", "as_json", is_flag=True, help="One line of JSON.")
within = option(
    "--timeout",
    default=f"{DEFAULT_TIMEOUT_S:g}",
    show_default=True,
    metavar="SECONDS",
    callback=_seconds,
    help="Deadline in seconds, or none.",
)
with_traceback = option("--traceback", is_flag=True, help="Show the agent's traceback when it raises.")


# ---------------------------------------------------------------- which host


def locate(host: str, port: int | None, server_id: str | None) -> ConnectionFile | None:
    """The live host of this user on this machine that is meant, None if there is none such.

    Raises UsageError when several could be meant. Private hosts, which belong to a program, are meant only by id.
    """
    from . import endpoints

    if server_id:
        found = [r for r in endpoints.list_hosts() if r.server_id == server_id and (not port or r.port == port)]
        return found[0] if found else None
    if port:
        return endpoints.find_host(host, port)
    here = endpoints.is_this_machine(host)
    found = [r for r in endpoints.list_hosts() if r.port is not None and (here or r.host == host)]
    if len(found) > 1:
        names = ", ".join(f"{r.server_id} at {r.host}:{r.port}" for r in found)
        raise click.UsageError(f"{len(found)} hosts are running: {names}; say which with --port or --server-id")
    if not found and not here:
        raise click.UsageError(f"a host on {host} needs its --port")
    return found[0] if found else None


def open_client(
    host: str, port: int | None, server_id: str | None, *, timeout: float | None = DEFAULT_TIMEOUT_S
) -> RpcClient:
    """A client of the host that is meant; HostUnreachable if no address is known. Connects with its first request."""
    from .proxy import RpcClient

    if port and not server_id:
        return RpcClient(host, port, timeout=timeout)
    found = locate(host, port, server_id)
    if found is None:
        which = f"no host {server_id!r} of yours" if server_id else "no host of yours"
        raise errors.HostUnreachable(f"{which} is running on this machine; as_server start runs one")
    if found.port is None:
        from .client import Target, connect

        return RpcClient(link=connect(Target("", None, ipc=found.ipc)), timeout=timeout)
    return RpcClient(found.host, found.port, timeout=timeout)


# ---------------------------------------------------------------- values in


def read_arguments(texts: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call. Each text is JSON, or a bare word; ``name=...`` is a keyword one."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or keyword.iskeyword(name):
            args.append(read_value(text))
        elif name in kwargs:
            raise click.UsageError(f"{name}= is given twice")
        else:
            kwargs[name] = read_value(value)
    return args, kwargs


def read_value(text: str) -> Any:
    """JSON, else the text itself; UsageError for what was surely meant to be more than a text."""
    if text in ("True", "False", "None"):
        json_word = {"True": "true", "False": "false", "None": "null"}[text]
        raise click.UsageError(f"{text} is no JSON: write {json_word}, or '\"{text}\"' for the text")
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as exc:
        if text[:1] in ("{", "[", '"'):
            raise click.UsageError(f"{text!r} begins like JSON and is none ({exc}): mind the shell's quoting") from None
        return text


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


# ---------------------------------------------------------------- values out


def plain(value: Any) -> Any:
    """``value`` as JSON data. What JSON lacks becomes what says most: bytes base64, times ISO 8601, durations
    seconds, sets sorted lists, enums their values, objects their fields, proxies and results where they are.
    """
    from .proxy import AgentProxy
    from .result import AsyncResult

    match value:
        case AgentProxy():  # first: any attribute of the next two is a call
            return {"agent_id": value.agent_id, "proxy": repr(value)}
        case AsyncResult():
            return {"task_id": value.task_id, "server_id": value.server_id}
        case Enum():
            return plain(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case Mapping():
            return {key if isinstance(key, str) else _line(plain(key)): plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted(map(plain, value), key=_line)
        case list() | tuple():
            return [plain(item) for item in value]
        case BaseException():
            return f"{type(value).__name__}: {value}"
    return _plain_object(value)


def _plain_object(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for method in ("model_dump", "to_dict", "tolist"):  # pydantic, Msg and its like, numpy
        if callable(getattr(value, method, None)) and not isinstance(value, type):
            return plain(getattr(value, method)())
    return str(value)


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def show(value: Any, as_json: bool) -> None:
    """Print a value: one line of JSON, or for the eye a text as it is and the rest as indented JSON."""
    if as_json:
        click.echo(_line(plain(value)))
    elif isinstance(value, str):
        click.echo(value)
    else:
        click.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print chosen fields of ``rows`` under their names; numbers to the right."""
    cells = [list(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [bool(rows) and isinstance(rows[0].get(name), (int, float)) for name in columns]
    for line in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        click.echo("  ".join(padded).rstrip())


def show_facts(facts: Mapping[str, str]) -> None:
    """Print ``name  value`` lines, the values below each other."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}".rstrip())


def say(message: str) -> None:
    """A message to the user: stderr."""
    click.echo(message, err=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not minutes and not hours:
        return f"{seconds:.1f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# ---------------------------------------------------------------- start


@click.group(
    name="as_server", cls=Shell, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.version_option(__version__, prog_name="as_server", message="%(prog)s %(version)s")
@click.pass_context
def shell(ctx: click.Context) -> None:
    """Host Python agents and call them from anywhere.

    \b
    as_server start --agent-dir DIR          run a host here
    as_server create Reader docs=/docs       make an agent of a class in DIR
    as_server call reader reply "why?"       call it
    as_server stop                           stop the host

    Each option can also be set as AS_SERVER_<OPTION>, for example AS_SERVER_PORT=7411. Without --port the verbs
    mean the one host of yours that runs on this machine.

    \b
    Exit codes: 0 done, 1 the agent raised (or the host could not finish the call), 2 usage, settings or an
    unknown name, 3 cannot listen, 4 not reachable, 5 refused key, 6 timed out, 70 given up after too many crashes,
    130 interrupted.

    Tab completion: eval "$(as_server completion bash)", or zsh, or fish.
    """
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
        ctx.exit(2)


@shell.command(cls=StartVerb)
@settings
@option(
    "--agent", "declared", multiple=True, metavar="ID=CLASS", callback=_declarations,
    help="An agent to make at each start, before anybody is served; as often as needed.",
)  # fmt: skip
@option("--restart", is_flag=True, help="Start the host again when it crashes.")
@option("--strict", is_flag=True, help="Refuse to start when an agent file cannot be loaded.")
@option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True,
    help="What is logged to stderr.",
)  # fmt: skip
@as_json
def start(declared: dict[str, Any], restart: bool, strict: bool, log_level: str, as_json: bool, **settings: Any) -> int:
    """Run a host in the foreground.

    When it listens it prints one line with its address to stdout. SIGINT (Ctrl-C), SIGTERM and as_server stop let
    running and queued calls go on for --grace seconds and end it with exit code 0; a second signal ends it at once.
    An agent file that cannot be loaded is reported and left out, unless --strict.

    With --restart a host that crashes is started again on the same port, with growing pauses; the sixth time within a
    minute it is given up with exit code 70. Of its agents only those of --agent are there again, new.
    """
    config = BrokerConfig(**settings, agents=declared)
    from . import hosting, loader
    from .systemd import Notifier

    hosting.show_stacks_on_request()
    hosting.keep_sockets_to_ourselves()
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if strict and config.agent_dir is not None:
        loader.load_agents_from_dir(config.agent_dir, strict=True)  # a file runs once: the host gets these classes
    notifier = Notifier.from_environment()
    if restart:
        return _keep_running(config, as_json, notifier)
    failures: list[errors.LoadError] = []

    def ready(bound: Bound) -> None:
        _tell_failures(failures)
        _announce(bound, os.getpid(), config.open_to, as_json)

    try:
        status = hosting.serve(config, [], ready, failures=failures, notifier=notifier)
    finally:
        _tell_failures(failures)
    _exit_in_time(status)
    return status


def _keep_running(config: BrokerConfig, as_json: bool, notifier: Notifier) -> int:
    """``start --restart``: this process supervises, and the host is its child."""
    if notifier.watchdog_s is not None:
        raise click.UsageError("--restart hides the host from systemd's watchdog: leave it out, and set Restart= there")
    from .broker import Bound
    from .launcher import LAUNCH_TIMEOUT_S
    from .supervisor import Supervisor

    def ready(report: dict[str, Any], pid: int) -> None:
        _tell_failures(report["left_out"])
        _announce(Bound(*report["bound"]), pid, config.open_to, as_json)

    supervisor = Supervisor(config, [], launch_timeout_s=LAUNCH_TIMEOUT_S, new_session=True, notifier=notifier)
    return supervisor.run(ready)


def _tell_failures(failures: list[Any]) -> None:
    while failures:
        say(f"agent file left out: {failures.pop(0)}")


def _announce(bound: Bound, pid: int, open_to: str, as_json: bool) -> None:
    server_id, host, port, ipc, _ = bound
    if open_to:
        say(f"warning: --insecure: {open_to} can call the agents on port {port}")
    if as_json:
        text = _line({"server_id": server_id, "host": host, "port": port, "pid": pid, "ipc": ipc})
    else:
        text = f"zmqagents host {server_id} listening on {host}:{port} (pid {pid})"
    click.echo(text)  # flushes


def _exit_in_time(status: int) -> None:
    """The interpreter waits for threads and exit handlers; those of agents may never end, but the host does."""

    def watch() -> None:
        time.sleep(EXIT_LIMIT_S)
        log.warning("ending, although a thread or an exit handler of an agent's is still running")
        os._exit(status)

    threading.Thread(target=watch, name="zmqagents-exit", daemon=True).start()


# ---------------------------------------------------------------- one host


@shell.command()
@on_host
@option(
    "--grace", metavar="SECONDS", callback=_seconds, help="How long calls may go on; default: the host's own grace."
)
def stop(grace: float | None, host: str, port: int | None, server_id: str | None) -> None:
    """Stop a host and wait until it has ended.

    Where none is running that is said, and the exit code is 0 as well. A host that does not end within its grace
    and 2 seconds is reported with exit code 6.
    """
    record = locate(host, port, server_id)
    if record is None and (not port or server_id):
        click.echo(f"no host {server_id + ' ' if server_id else ''}of yours is running on this machine")
        return
    name = f"{record.server_id} at {record.host}:{record.port}" if record else f"{host}:{port}"
    try:
        limit_s = _ask_to_stop(grace, host, port, server_id)
    except errors.HostUnreachable:
        if record is not None and record.is_live:
            raise errors.HostUnreachable(f"{name} does not answer; its process is {record.pid}") from None
        click.echo(f"no host is running at {record.host if record else host}:{record.port if record else port}")
        return
    except (errors.HostStopping, errors.CallLost, errors.HostLost):  # it was about to end by itself
        limit_s = 0.0
    if not _wait_until_gone(record, host, port, limit_s + END_WAIT_S):
        pid = f" (pid {record.pid})" if record else ""
        raise errors.CallTimeout(f"{name}{pid} is still there {limit_s + END_WAIT_S:g} s after it was asked to stop")
    click.echo(f"stopped {name}")


def _ask_to_stop(grace: float | None, host: str, port: int | None, server_id: str | None) -> float:
    """Send the stop; how long the host may take for it, in seconds."""
    with open_client(host, port, server_id) as client:
        settings = client.get_server_info()["settings"]
        client.stop(grace)
        return float(settings["grace_s"]) if grace is None else grace


def _wait_until_gone(record: ConnectionFile | None, host: str, port: int | None, limit_s: float) -> bool:
    """Wait for a host of this machine to let go of its lock, for another to answer no more."""
    end = time.monotonic() + limit_s
    while _is_there(record, host, port):
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _is_there(record: ConnectionFile | None, host: str, port: int | None) -> bool:
    if record is not None:
        return record.is_live
    with open_client(host, port, None) as client:
        return client.is_alive()


@shell.command()
@on_host
@as_json
def status(as_json: bool, **where: Any) -> None:
    """Show how a host is. Exit code 4 if it does not answer."""
    with open_client(**where) as client:
        info = client.get_server_info()
    if as_json:
        show(info, True)
        return
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in info["calls"].items())
    store = info["store"]
    show_facts({
        "host": f"{info['server_id']} at {info['host']}:{info['port']} (pid {info['pid']})",
        "version": f"{info['version']} on Python {info['python']}",
        "state": f"{info['state']} for {_duration(info['uptime_s'])}",
        "agents": f"{info['agents']}",
        "classes": ", ".join(name.rpartition(":")[2] for name in info["classes"]) or "none",
        "models": ", ".join(info["models"]) or "none",
        "clients": f"{info['clients']}",
        "running": f"{info['running']} of {info['capacity']}, {info['waiting']} waiting",
        "calls": f"{info['calls_open']} open, {counts}",
        "results": f"{store['done']} kept in the {store['kind']} store, {store['bytes']} bytes",
        **_store_facts(store),
    })  # fmt: skip


def _store_facts(store: dict[str, Any]) -> dict[str, str]:
    facts = {
        "store": f"{store['pending']} pending, {store['hits']} found, {store['misses']} not found, "
        f"{store['expired']} expired, {store['evicted']} evicted, {store['refused']} too large"
    }
    if "url" in store:
        trouble = f": {store['trouble']}" if store["trouble"] else f", round trip {store['round_trip_ms']:g} ms"
        facts["redis"] = f"{store['url']} ({store['namespace']}) is {store['state']}{trouble}"
        facts["unwritten"] = f"{store['unwritten']} results, {store['unwritten_bytes']} bytes, {store['given_up']} lost"
    return facts


@shell.command()
@on_host
@as_json
def agents(as_json: bool, **where: Any) -> None:
    """List the agents of a host."""
    with open_client(**where) as client:
        found = client.get_agent_list()
    _show_rows(found, ("agent_id", "type", "calls", "running", "queued", "age_s"), as_json, "no agents")


@shell.command()
@on_host
@as_json
def calls(as_json: bool, **where: Any) -> None:
    """List the calls of a host that are not answered yet."""
    with open_client(**where) as client:
        found = client.get_call_list()
    _show_rows(found, ("task_id", "agent", "method", "state", "age_s", "caller", "waits_for"), as_json, "no open calls")


@shell.command()
@on_host
@as_json
def dump(as_json: bool, **where: Any) -> None:
    """Show where the code of each open call is, and what it waits for: to see what is stuck."""
    with open_client(**where) as client:
        found = client.dump()
    if as_json or not found:
        _show_rows(found, (), as_json, "no open calls")
        return
    for call in found:
        waits = ", ".join(call["waits_for"] + call["behind"])
        line = f"{call['task_id']}  {call['agent']}.{call['method']}  {call['state']} {call['age_s']} s"
        click.echo(f"{line}, by {call['caller']}" + (f", waits for {waits}" if waits else ""))
        click.echo(call["stack"].rstrip() + "\n" if call["stack"] else "")


def _show_rows(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool, if_none: str) -> None:
    if as_json:
        show(rows, True)
    elif rows:
        show_table(rows, columns)
    else:
        say(if_none)


# ---------------------------------------------------------------- agents and their calls


@shell.command(cls=DashVerb)
@click.argument("class_name", metavar="CLASS")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@option("--agent-id", metavar="ID", help="Its id; default: a new one.")
@on_host
@within
@as_json
@with_traceback
def create(
    class_name: str, arguments: tuple[str, ...], agent_id: str | None, timeout: float | None, as_json: bool,
    traceback: bool, **where: Any,
) -> None:  # fmt: skip
    """Make an agent of a class that the host knows, and print its id. ARGS: see call."""
    args, kwargs = read_arguments(arguments)
    for name in {"agent_id", "cls_or_name"} & kwargs.keys():  # parameters of create_agent itself
        raise click.UsageError(f"{name}= cannot be given here; the id of the agent is --agent-id")
    with open_client(timeout=timeout, **where) as client:
        made = client.create_agent(class_name, *args, agent_id=agent_id, **kwargs)
    show({"agent_id": made.agent_id, "class": class_name} if as_json else made.agent_id, as_json)


@shell.command()
@click.argument("agent")
@on_host
def delete(agent: str, **where: Any) -> None:
    """Delete an agent: its queued calls end in AgentDeleted."""
    with open_client(**where) as client:
        client.delete_agent(agent)
    click.echo(f"deleted {agent}")


@shell.command(cls=DashVerb)
@click.argument("agent")
@click.argument("method")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@on_host
@within
@as_json
@option("--no-wait", is_flag=True, help="Print the task id of an asynchronous call instead of waiting for its result.")
@with_traceback
def call(
    agent: str, method: str, arguments: tuple[str, ...], timeout: float | None, as_json: bool, no_wait: bool,
    traceback: bool, **where: Any,
) -> None:  # fmt: skip
    """Call a method of an agent, or read an attribute, and print the value; of a stream each item as it comes.

    Each of ARGS is JSON; a bare word that is no JSON is a text; name=JSON is a keyword argument. What begins with a
    dash and is no number comes after --. A text is printed as it is, any other value as JSON.

    \b
    as_server call reader reply "what is a ROUTER?"
    as_server call counter add 3 step=-1
    as_server call reader search '{"words": ["zip", "archive"]}' limit=5
    """
    args, kwargs = read_arguments(arguments)
    with open_client(timeout=timeout, **where) as client:
        proxy = client.get_agent(agent)
        if no_wait:
            task_id = _submit(client, proxy, method, args, kwargs)
            show({"task_id": task_id} if as_json else task_id, as_json)
        else:
            _call(proxy, method, args, kwargs, as_json)


def _call(proxy: AgentProxy, method: str, args: list[Any], kwargs: dict[str, Any], as_json: bool) -> None:
    """Make a call, or read an attribute, and show the value; of a stream each item, as it comes."""
    kind = _returns(proxy, method)
    if kind is None and not args and not kwargs:
        show(_attribute(proxy, method), as_json)
        return
    value = _bound(proxy, method)(*args, **kwargs)
    if kind == "stream":
        with value as items:
            for item in items:
                show(item, as_json)
        return
    show(_wait_for(value) if kind == "future" else value, as_json)


def _wait_for(result: AsyncResult) -> Any:
    try:
        return result.result()
    except KeyboardInterrupt:
        say(f"the call goes on; as_server result {result.task_id} gives its result, as_server cancel ends it")
        raise


def _submit(client: RpcClient, proxy: AgentProxy, method: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Make an asynchronous call; its task id, once the host has it."""
    call = _bound(proxy, method)
    if _returns(proxy, method) != "future":
        raise click.UsageError(f"the result of {method} is not kept: call it without --no-wait")
    result = call(*args, **kwargs)
    answers = client.is_alive()  # goes the same way after it, so the answer says that the call is there
    if result.done() and (error := result.exception()) is not None:
        raise error
    if not answers:
        raise errors.CallLost(f"{client.address} does not answer: it may have the call {result.task_id}, or not")
    return str(result.task_id)


def _returns(proxy: AgentProxy, method: str) -> str | None:
    """What a method returns (see `agent`), None if there is no such method."""
    if method.startswith("_") and method != "__call__":
        raise errors.UnknownMethod(f"{method!r} is private")
    return proxy._za_returns(method)


def _bound(proxy: AgentProxy, method: str) -> Any:
    if _returns(proxy, method) is None:
        raise _no_such_method(proxy, method)
    return proxy if method == "__call__" else getattr(proxy, method)


def _attribute(proxy: AgentProxy, name: str) -> Any:
    try:
        return getattr(proxy, name)
    except errors.UnknownMethod as exc:
        if isinstance(exc, errors.AgentCallError):  # raised by the agent's own code
            raise
        raise _no_such_method(proxy, name) from exc


def _no_such_method(proxy: AgentProxy, name: str) -> errors.UnknownMethod:
    offered = ", ".join(sorted(proxy.__zmqagents_ref__().methods)) or "none"
    return errors.UnknownMethod(f"{proxy.agent_id} has no public method {name!r}; it has: {offered}")


@shell.command()
@click.argument("task_id", required=False)
@option("--list", "listed", is_flag=True, help="List the results that are kept instead, the latest first.")
@on_host
@option("--wait/--no-wait", default=True, help="Wait for it if need be (default), or exit 6 if it is not there.")
@within
@as_json
@with_traceback
def result(
    task_id: str | None, listed: bool, wait: bool, timeout: float | None, as_json: bool, traceback: bool, **where: Any
) -> None:
    """Print the result of a call, made by whomever, waiting for it if need be."""
    if (task_id is None) is not listed:
        raise click.UsageError("give a task id, or --list")
    with open_client(**where) as client:
        if task_id is None:
            rows = client.get_result_list()
            _show_rows(rows, ("task_id", "state", "age_s", "bytes"), as_json, "no results")
            return
        value = client.get_result(task_id, timeout if wait else 0.001).result()
        show(value, as_json)


@shell.command()
@click.argument("task_id")
@on_host
def cancel(task_id: str, **where: Any) -> None:
    """Cancel a call: one that waits never runs, one that runs is told."""
    with open_client(**where) as client:
        ending = client.get_result(task_id, timeout=5.0)  # asked for first: it tells how the call has ended
        client.cancel(task_id)
        try:
            ending.result()
        except errors.CallCancelled:
            click.echo(f"cancelled {task_id}")
            return
        except errors.AgentCallError:
            pass
    click.echo(f"{task_id} had ended already")


# ---------------------------------------------------------------- files


@shell.command()
@click.argument("remote", metavar="FILE")
@click.argument("local", metavar="[TO]", required=False, type=click.Path())
@on_host
@within
@as_json
def download(remote: str, local: str | None, timeout: float | None, as_json: bool, **where: Any) -> None:
    """Copy a file of a host here, or to TO, a directory or a file name, and print where it is.

    The host serves only what lies below the directories that it was started with as --file-root. FILE is absolute, or
    relative to one of them. A copy that is interrupted leaves nothing under the final name.
    """
    path = local or "."
    if os.path.isdir(path):
        path = os.path.join(path, os.path.basename(remote))
    shown = sys.stderr.isatty()

    def progress(there: int, total: int) -> None:
        if shown:
            click.echo(f"\r{remote}: {there / MEBIBYTE:.1f} of {total / MEBIBYTE:.1f} MiB", nl=there == total, err=True)

    with open_client(timeout=timeout, **where) as client:
        try:
            size = client.download_file(remote, path, progress)
        except errors.ZmqAgentsError:
            raise
        except OSError as exc:
            raise errors.ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    show({"path": path, "bytes": size} if as_json else os.path.normpath(path), as_json)


# ---------------------------------------------------------------- how much a host can take


@shell.command(cls=DashVerb)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@on_host
@option("--agent", metavar="ID", help="The agent to call; default: the host itself is asked.")
@option("--method", default="__call__", show_default=True, metavar="NAME", help="Its method; ARGS as for call.")
@option("--clients", type=click.IntRange(1, 512), default=4, show_default=True, help="Processes that send.")
@option("--rate", type=float, default=100.0, show_default=True, help="Calls per second, all together.")
@option("--payload", type=click.IntRange(0), default=0, metavar="BYTES", help="A first argument of so many bytes.")
@option("--duration", type=float, default=10.0, show_default=True, metavar="SECONDS", help="How long to send.")
@option("--timeout", type=float, default=10.0, show_default=True, metavar="SECONDS", help="Deadline of a call.")
@as_json
def bench(
    arguments: tuple[str, ...], agent: str | None, method: str, clients: int, rate: float, payload: int,
    duration: float, timeout: float, as_json: bool, host: str, port: int | None, server_id: str | None,
) -> int:  # fmt: skip
    """Send calls to a host at a fixed rate and show how long the answers take.

    Calls are sent by a schedule, however slow the answers are, and a latency counts from the moment when its call was
    due: a host that stalls cannot hide it. Exit code 1 if a call failed.

    \b
    as_server bench --rate 1000 --duration 30
    as_server bench --agent reader --method search --clients 8 --rate 200 '"zip"' k=3
    """
    from . import loadgen

    args, kwargs = read_arguments(arguments)
    with open_client(host, port, server_id) as client:
        address = client.address
    load = loadgen.Load(
        address, agent, method, args, kwargs, payload, clients=clients, rate=rate, duration_s=duration,
        timeout_s=timeout,
    )  # fmt: skip
    summary = loadgen.run(load, _tell_second if sys.stderr.isatty() else None)
    if as_json:
        show(summary.to_json(), True)
    else:
        _show_load(summary.to_json())
    return 1 if summary.total.errors else 0


def _tell_second(at_s: float, second: Interval) -> None:
    failed = sum(second.errors.values())
    latency = f"p50 {second.latency_ms(50):.2f} ms  p99 {second.latency_ms(99):.2f} ms"
    say(f"{at_s:4.0f} s  {second.answered:>6,} answers  {latency}  {failed} failed")


def _show_load(summary: dict[str, Any]) -> None:
    load, latency = summary["load"], summary["latency_ms"]
    asked = f"{load['agent']}.{load['method']}" if load["agent"] else "the host itself"
    failed = ", ".join(f"{count:,} {name}" for name, count in summary["errors"].items()) or "none"
    show_facts({
        "target": f"{asked} at {load['address']}",
        "load": f"{load['rate']:,g} calls/s from {load['clients']} clients for {load['duration_s']:g} s",
        "sent": f"{summary['sent']:,} calls, {summary['per_s']:,.1f}/s; {summary['answered']:,} answered",
        "failed": failed,
        "latency": "  ".join(f"{name} {value:.2f}" for name, value in latency.items()) + "  ms",
    })  # fmt: skip
    if summary["behind_ms"] > max(latency["p99"], 10.0):
        say(f"the generator itself was up to {summary['behind_ms']:.0f} ms behind its schedule: try more clients")


# ---------------------------------------------------------------- keys


@shell.group()
def keys() -> None:
    """Show and change who may connect: the key store of this user."""


def _store() -> KeyStore:
    from .security import KeyStore

    return KeyStore.open()


@keys.command("path")
def keys_path() -> None:
    """Print the directory of the key store, which is made if missing (ZMQAGENTS_KEYS moves it)."""
    click.echo(str(_store().path))


@keys.command("show")
@as_json
def keys_show(as_json: bool) -> None:
    """Print the public keys of this user.

    To call a host of another user or machine, add your client key there (keys add NAME KEY) and its server key
    here (keys add HOST:PORT KEY).
    """
    store = _store()
    public = {"client": store.client_keypair().public, "server": store.server_keypair().public}
    if as_json:
        show(public, True)
    else:
        show_facts(public)


@keys.command("add", cls=KeyVerb)
@click.argument("name")
@click.argument("public_key", metavar="KEY")
@option("--role", type=click.Choice(["call", "admin"]), default="call", show_default=True, help="What NAME may do.")
def keys_add(name: str, public_key: str, role: str) -> None:
    """Let the client NAME with its public KEY call the hosts of this user; or, with HOST:PORT for NAME, know the
    KEY of that host. An earlier key of the name is replaced. Hosts that run see it within a second.
    """
    if ":" in name:
        _store().remember_host(*_host_and_port(name), public_key)
    else:
        _store().authorize(name, public_key, "admin" if role == "admin" else "call")
    click.echo(f"added {name}")


@keys.command("list")
@as_json
def keys_list(as_json: bool) -> None:
    """List the clients that may connect, and the hosts elsewhere whose keys are known."""
    store = _store()
    rows: list[dict[str, Any]] = []
    rows += [{"name": peer.name, "role": peer.role, "public": key} for key, peer in store.authorized().items()]
    rows += [{"name": f"{host}:{port}", "role": "host", "public": key} for host, port, key in store.known_hosts()]
    rows.sort(key=lambda row: (row["role"] == "host", row["name"]))
    _show_rows(rows, ("name", "role", "public"), as_json, "no keys")


@keys.command("remove")
@click.argument("name")
def keys_remove(name: str) -> None:
    """Refuse the client NAME from now on; or, with HOST:PORT, forget that host's key."""
    if ":" in name:
        _forget(name)
    elif not _store().revoke(name):
        raise _no_such_key(name)
    click.echo(f"removed {name}")


@keys.command("forget")
@click.argument("name", metavar="HOST:PORT")
def keys_forget(name: str) -> None:
    """Know the key of the host at HOST:PORT no more."""
    _forget(name)
    click.echo(f"forgot {name}")


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


# ---------------------------------------------------------------- this machine


@shell.command()
@settings
@as_json
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **settings: Any) -> int:
    """Show what start would use and where each setting comes from, the key store, and the hosts that run.

    Takes the options of start. Exit code 2 if something stands in the way of starting.
    """
    problems: list[str] = []

    def attempt(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except errors.ZmqAgentsError as exc:
            problems.append(_name_the_option(ctx, " ".join(str(exc).split())))
            return None

    from . import endpoints, files

    config = attempt(lambda: BrokerConfig(**settings))
    store = attempt(_store)
    if store is not None:
        problems += store.problems()
        if config is not None:
            attempt(lambda: files.hold_apart(config.file_roots, store.path))
    report = {
        "versions": _versions(),
        "settings": {name: _with_origin(ctx, name, value) for name, value in settings.items()},
        "key_store": str(store.path) if store is not None else None,
        # Of the longest name that a host may have: the whole path must fit into the address of a socket.
        "runtime_dir": attempt(lambda: os.path.dirname(endpoints.ipc_path("x" * endpoints.MAX_NAME_CHARS))),
        "hosts": [dataclasses.asdict(record) for record in endpoints.list_hosts()],
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
    origin = _variable_of(ctx, param) or ("argument" if source is ParameterSource.COMMANDLINE else "default")
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


@shell.command()
@click.argument("shell_name", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell_name: str) -> None:
    """Print the script that completes as_server in bash, zsh or fish.

    \b
    bash   eval "$(as_server completion bash)"                                        in ~/.bashrc
    zsh    eval "$(as_server completion zsh)"                                         in ~/.zshrc
    fish   as_server completion fish > ~/.config/fish/completions/as_server.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell_name)
    assert kind is not None
    click.echo(kind(shell, {}, "as_server", "_AS_SERVER_COMPLETE").source())


def main(args: Sequence[str] | None = None) -> None:
    """The command ``as_server``. Does not return: it exits with the code of the verb."""
    shell.main(args, prog_name="as_server")
