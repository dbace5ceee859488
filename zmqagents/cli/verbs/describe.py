"""``describe``: the methods of an agent or a class, their signatures and their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import click

from ... import errors
from .. import completing
from ..command import Verb
from ..declared import put_on_path
from ..options import as_json, on_host, option
from ..output import show, visible
from ..where import open_client

__all__ = ["describe"]

GIVES = {"value": "", "future": "  → AsyncResult", "stream": "  → Stream"}


@click.command(cls=Verb)
@click.argument("what", metavar="[AGENT|CLASS]", required=False, shell_complete=completing.agents)
@option("--app-dir", metavar="DIR", help="Where module:Class is imported from; default: the working directory.")
@on_host
@as_json
def describe(what: str | None, app_dir: str | None, as_json: bool, **where: Any) -> None:
    """Show the methods of an agent, or of a class, with their signatures and docstrings.

    AGENT is the id of an agent, CLASS a class that has an agent on the host; module:Class is imported here and asks no
    host. Without either, all classes of the host are listed.

    \b
    as_server describe reader
    as_server describe shop:Inventory
    """
    if what is not None and ":" in what:
        put_on_path(app_dir)
        found = [_of_class(what)]
    else:
        found = _of_host(what, where)
    if as_json:
        show(found if what is None else found[0], True)
        return
    for number, one in enumerate(found):
        click.echo("\n" * bool(number) + _as_text(one))


def _of_class(text: str) -> dict[str, Any]:
    from ...agents.loader import load_class
    from ...agents.spec import spec_of

    cls = load_class(text)
    spec = spec_of(cls)
    methods = {name: [method.mark, method.signature, method.doc] for name, method in spec.methods.items()}
    try:
        makes = str(inspect.signature(cls))
    except (TypeError, ValueError):  # Python cannot tell
        makes = "(...)"
    return {"class": spec.name, "made_by": f"{spec.short}{makes}", "doc": spec.doc, "methods": _rows(methods)}


def _of_host(what: str | None, where: Mapping[str, Any]) -> list[dict[str, Any]]:
    with open_client(**where) as client:
        agents = client.get_agent_list()
        classes = client.get_server_info()["classes"]
        ids = {row["agent_id"]: row["class"] for row in agents}
        some = {row["class"]: row["agent_id"] for row in reversed(agents)}
        if what is None:
            named = list(classes)
        elif what in ids:
            return [{"agent_id": what, **_of_agent(client.get_agent(what), ids[what])}]
        else:
            named = [name for name in classes if what in (name, name.rpartition(":")[2])]
        if not named and what is not None:
            known = [*ids, *(name.rpartition(":")[2] for name in classes)]
            raise errors.UnknownAgent(
                f"the host has no agent and no class {what!r}; it has: {', '.join(known) or 'none'}"
                f"{errors.did_you_mean(what, known)}"
            )
        return [
            _of_agent(client.get_agent(some[name]), name) if name in some else {"class": name, "methods": None}
            for name in named
        ]


def _of_agent(proxy: Any, class_name: str) -> dict[str, Any]:
    methods = {}
    for name, text in proxy.__zmqagents_ref__().methods.items():
        mark, _, signature = text.partition(" ")
        bound = proxy.__zmqagents_method__(name)
        methods[name] = [mark, signature, (bound.__doc__ or "") if bound is not None else ""]
    return {"class": class_name, "doc": proxy.__doc__ or "", "methods": _rows(methods)}


def _rows(methods: Mapping[str, list[str]]) -> list[dict[str, str]]:
    from ...agents.spec import without_self

    return [
        {"name": name, "signature": without_self(signature), "gives": mark.rstrip("!"), "doc": doc}
        for name, (mark, signature, doc) in sorted(methods.items())
    ]


def _as_text(one: dict[str, Any]) -> str:
    lines = [f"{one['agent_id']}, of class {one['class']}" if "agent_id" in one else one["class"]]
    lines += [f"  {line}" for line in (one.get("made_by", ""), *one.get("doc", "").splitlines()) if line]
    if one["methods"] is None:
        short = one["class"].rpartition(":")[2]
        return f"{visible(lines[0])}\n  no agent of it yet: as_server create {short}"
    for method in one["methods"]:
        lines += ["", f"  {method['name']}{method['signature']}{GIVES.get(method['gives'], '  attribute')}"]
        lines += [f"      {line}" for line in method["doc"].splitlines()]
    return "\n".join(visible(line) for line in lines)
