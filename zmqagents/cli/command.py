"""Commands, and what goes wrong in them: one line on stderr, an exit code, never a traceback of zmqagents."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

from .. import errors
from .config_file import file_of
from .output import say
from .values import json_text

__all__ = ["EXIT_CODES", "DashVerb", "Failure", "Shell", "Verb", "name_the_option", "origin_of", "unknown_variables"]


PREFIX = "AS_SERVER_"  # of the variables that options read
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# The first that fits counts: an agent's own TimeoutError is both an AgentCallError and a TimeoutError.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.AgentCallError, 1),
    (errors.AuthenticationError, 5),
    (errors.PermissionRefused, 5),
    (errors.CallTimeout, 6),
    (errors.ConfigError, 2),
    (errors.LoadError, 2),
    (errors.MissingExtra, 2),
    (errors.UnknownAgent, 2),
    (errors.UnknownClass, 2),
    (errors.UnknownCluster, 2),
    (errors.UnknownFile, 2),
    (errors.UnknownMethod, 2),
    (errors.UnknownTask, 2),
    (errors.AgentExists, 2),
    (errors.LaunchError, 3),
    (ConnectionError, 4),  # HostUnreachable, HostLost, HostStopping, CallLost, StoreUnavailable
)


# What to type next, where the host cannot know it; for texts that have the last word in them.
_HINTS: tuple[tuple[type[BaseException], str, str], ...] = (
    (errors.UnknownAgent, "as_server agents lists those there are", ""),
    (errors.UnknownTask, "as_server result --list lists the results that are kept", ""),
    (errors.HostUnreachable, "as_server stop ends one of yours that hangs", "no answer within"),
    (errors.PermissionRefused, "as_server keys list there shows the roles", "admin"),
    (errors.CallTimeout, "--timeout gives it longer, as_server calls shows what it waits for", "timed out after"),
)


class Failure(click.ClickException):
    """An error of the package as the shell shows it: one line, an exit code. A JSON object where JSON is asked for."""

    def __init__(self, context: click.Context, error: errors.ZmqAgentsError) -> None:
        super().__init__(str(error))
        self.status = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        self._context = context
        self._error = error

    def format_message(self) -> str:
        """``TypeName: message`` of what an agent raised; else the verb and what is wrong, in the shell's words."""
        error = self._error
        if self._context.params.get("as_json"):
            return json_text(self._facts())
        if isinstance(error, errors.AgentCallError):
            trace = error.remote_traceback if self._context.params.get("traceback") else ""
            if trace:
                return f"{trace.rstrip()}\n{error.with_name()}"
            is_called_wrong = "; it takes " in error.message  # which says all that the traceback would
            can_show = "traceback" in self._context.params and error.remote_traceback and not is_called_wrong
            return f"{error.with_name()}; --traceback shows where" if can_show else error.with_name()
        text = " ".join(str(error).split())
        if isinstance(error, errors.ConfigError):
            text = name_the_option(self._context, text)
        hint = next((f"; {hint}" for kind, hint, about in _HINTS if isinstance(error, kind) and about in text), "")
        return f"{self._context.command_path}: {text}{hint}"

    def _facts(self) -> dict[str, Any]:
        """What a program wants to know: the exit code, the type of the error, its message and, if asked for, more."""
        error = self._error
        facts = {"exit_code": self.status, "error": type(error).__name__, "message": str(error)}
        if isinstance(error, errors.AgentCallError):
            facts["error"] = error.type_name
            if self._context.params.get("traceback"):
                facts["traceback"] = error.remote_traceback
        return facts


class Verb(click.Command):
    """A command whose errors are one line and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_json = "--json" in args and any(param.name == "as_json" for param in self.params)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            if asks_for_json:  # click has not got so far as to note it
                ctx.params["as_json"] = True
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.ZmqAgentsError as exc:
            raise Failure(ctx, exc) from exc
        except click.UsageError as exc:
            exc.ctx = exc.ctx or ctx
            raise


class DashVerb(Verb):
    """A verb some of whose arguments begin with a dash, as ``dashed`` says, and are no options for that."""

    dashed = re.compile(r"-\d")  # a negative number

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts}
        marked, previous = [], ""
        for arg in args:
            # No argument of a process holds a NUL, so no user can have typed this mark.
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


class Shell(click.Group):
    """A group that lists its verbs in the order of their definition and says in one line what is wrong."""

    command_class = Verb
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; which verb is near is said by ourselves, for not every version of click does that."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}{errors.did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **more: Any) -> Any:
        more["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a text that the terminal cannot show is no error
        try:
            status = super().main(*args, **more)
        except click.UsageError as exc:
            say(_usage(exc))
            status = exc.exit_code
        except Failure as exc:
            say(exc.format_message())
            status = exc.status
        except OSError as exc:
            status = _not_written(exc)
        except click.Abort:
            status = INTERRUPTED
        sys.exit(status if isinstance(status, int) else 0)


def unknown_variables(group: click.Group) -> Iterator[str]:
    """A line for each variable ``AS_SERVER_...`` of the environment that no option of any verb reads."""
    given = sorted(name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX))
    if not given:  # to ask the verbs is to import them
        return
    known = {name.removeprefix(PREFIX) for name in _variables(group)}
    for word in given:
        if word not in known:
            near = errors.did_you_mean(word, known).replace("'", f"'{PREFIX}", 1)
            yield f"{PREFIX}{word} is set and is no option of as_server{near}"


def _variables(command: click.Command) -> Iterator[str]:
    for param in command.params:
        yield str(param.envvar)
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _variables(inner)


def _not_written(exc: OSError) -> int:
    """Stdout takes no more, a full disk say: that is said once, and what is left is dropped. The exit code."""
    with contextlib.suppress(OSError, ValueError):  # else the interpreter tries again at its end
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    with contextlib.suppress(OSError):
        say(f"as_server: {exc if exc.filename or not exc.strerror else exc.strerror}")
    return 1


def _usage(exc: click.UsageError) -> str:
    """What is wrong with the words of the user, in one line, or as JSON where the verb had got that far."""
    if exc.ctx is not None and exc.ctx.params.get("as_json"):
        return json_text({"exit_code": exc.exit_code, "error": "UsageError", "message": exc.format_message()})
    return _one_line(exc)


def _one_line(exc: click.UsageError) -> str:
    path = exc.ctx.command_path if exc.ctx is not None else "as_server"
    if isinstance(exc, click.BadParameter) and exc.ctx is not None and exc.param is not None:
        origin = origin_of(exc.ctx, exc.param)
        exc.param_hint = f"'{origin}'" if origin else exc.param_hint
    return f"{path}: {' '.join(exc.format_message().split())} (see {path} --help)"


def origin_of(ctx: click.Context, param: click.Parameter) -> str:
    """What gave ``param`` its value: an environment variable, or a file and its line's name; "" if neither did."""
    source = ctx.get_parameter_source(param.name) if param.name else None
    if source is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return f"{file_of(ctx)}: {param.opts[0].lstrip('-')}" if source is ParameterSource.DEFAULT_MAP else ""


def name_the_option(ctx: click.Context, text: str) -> str:
    """A `ConfigError` begins with the name of a setting; here that is an option or a variable."""
    field = re.match(r"\w*", text)
    for param in ctx.command.params:
        if field and isinstance(param, click.Option) and param.name == field.group():
            return (origin_of(ctx, param) or param.opts[0]) + text[field.end() :]
    return text
