"""The tables of the reference, made from the code when the site is built: options of every verb, errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click

from zmqagents import errors
from zmqagents.cli import shell
from zmqagents.cli.command import EXIT_CODES
from zmqagents.cli.config_file import CLIENT_SETTINGS

try:
    from docutils import nodes, statemachine
    from sphinx.util.docutils import SphinxDirective
except ImportError:  # the tests of the texts need no Sphinx
    SphinxDirective = object

__all__ = ["DIRECTIVES", "error_table", "option_tables", "verbs"]


def verbs(command: click.Command = shell, path: str = "as_server") -> Iterator[tuple[str, click.Command]]:
    """Every verb with its name as it is typed, in the order of the help."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, f"{path} {name}")


def option_tables() -> str:
    """A section for each verb: how it is called, what it does, its options."""
    parts: list[str] = []
    for path, verb in verbs():
        usage = " ".join(verb.collect_usage_pieces(click.Context(verb, info_name=path, **shell.context_settings)))
        parts += [path, "-" * len(path), "", "::", "", f"    {path} {usage}", "", _help_of(verb), ""]
        options = [param for param in verb.params if isinstance(param, click.Option)]
        if not options:
            continue
        parts += [".. list-table::", "   :header-rows: 1", "   :widths: 25 25 15 35", ""]
        parts += _row("option", "variable", "default", "meaning")
        for param in options:
            names = ", ".join(f"``{name}``" for name in (*param.opts, *param.secondary_opts))
            default = _default_of(param)
            variable = f"``{param.envvar}``" if param.envvar else "–"
            meaning = (param.help or "").rstrip(".") + "."
            if verb.name != "start" and param.name in CLIENT_SETTINGS:
                meaning += " Also ``[client]``."
            parts += _row(names, variable, default, _escaped(meaning))
        parts.append("")
    return "\n".join(parts)


def _row(*cells: str) -> list[str]:
    return [f"   {'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(cells)]


def _escaped(text: str) -> str:
    text = re.sub(r"_(?!\w)", r"\\_", " ".join(text.split()))  # ``OTEL_*`` would be a link
    return text.replace("*", r"\*").replace("|", r"\|")


def _help_of(verb: click.Command) -> str:
    """The help of a verb, whose blocks behind ``\\b`` stay as they are."""
    made = []
    for block in inspect.cleandoc(verb.help or "").split("\n\n"):
        if block.startswith("\b"):
            made.append("::\n\n" + "\n".join(f"    {line}" for line in block.splitlines()[1:]))
        else:
            made.append(_escaped(block))
    return "\n\n".join(made)


def _default_of(param: click.Option) -> str:
    shown = param.default
    if isinstance(param.show_default, str):
        shown = param.show_default
    if (
        param.is_flag
        or callable(shown)
        or shown is None
        or shown is False
        or shown in ("", ())
        or "Sentinel" in type(shown).__name__
    ):
        return "–"
    return f"``{shown}``"


def error_table() -> str:
    """Every public error: its bases, its exit code in the shell, what it means."""
    parts: list[str] = []
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            continue
        bases = ", ".join(f"``{base.__name__}``" for base in cls.__bases__)
        code = next((code for kind, code in EXIT_CODES if issubclass(cls, kind)), 1)
        first = _escaped(inspect.getdoc(cls) or "")
        parts += [f".. _error-{name}:", "", name, "-" * len(name), ""]
        parts += [f"A {bases}; exit code {code} of ``as_server``. {first}", ""]
    return "\n".join(parts)


def _directive(text: Any) -> Any:
    class Made(SphinxDirective):  # type: ignore[misc]
        def run(self) -> list[Any]:
            lines = statemachine.StringList(text().splitlines(), source="made from the code")
            node = nodes.section()
            node.document = self.state.document
            self.state.nested_parse(lines, self.content_offset, node, match_titles=True)
            return list(node.children)

    return Made


DIRECTIVES = {"options-of-verbs": _directive(option_tables), "errors-of-the-package": _directive(error_table)}
