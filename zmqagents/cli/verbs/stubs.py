"""Type stubs of proxies, for programs that call agents without having their classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from ... import errors
from ..command import Verb
from ..options import as_json, on_host, option
from ..output import show
from ..where import open_client

__all__ = ["stubs"]


@click.command(cls=Verb)
@option("--agent-dir", metavar="DIR", type=click.Path(), help="Read the files here instead of asking a host.")
@option("--output", "-o", metavar="DIR", default="typings", show_default=True, help="Where the stubs go.")
@on_host
@as_json
def stubs(agent_dir: str | None, output: str, as_json: bool, **where: Any) -> None:
    """Write type stubs for the proxies of agents, and print the paths.

    With --agent-dir, for each agent file NAME.py a stub NAME_proxies.pyi, with the types that its signatures name. From
    a host, one stub agents_proxies.pyi for the classes of its agents, with the types of Python itself; others are Any.

    \b
    if TYPE_CHECKING:
        from reader_proxies import AsyncReaderProxy, ReaderProxy

    mypy finds them with mypy_path = typings, pyright by itself.
    """
    made = _from_files(agent_dir) if agent_dir is not None else _from_host(where)
    if not made:
        raise errors.ConfigError("there is no agent class to write a stub for")
    paths = [_write(Path(output) / f"{name}_proxies.pyi", text) for name, text in made.items()]
    show(paths if as_json else "\n".join(paths), as_json)


def _from_files(directory: str) -> dict[str, str]:
    from ...agents.loader import load_agents_from_dir
    from ...agents.spec import spec_of
    from ...agents.stubs import Methods, stub_of

    classes: dict[Path, dict[str, Methods]] = {}
    for cls in load_agents_from_dir(directory):
        methods = {name: (method.returns, method.signature) for name, method in spec_of(cls).methods.items()}
        classes.setdefault(Path(inspect.getfile(cls)), {})[cls.__name__] = methods
    return {path.stem: stub_of(found, path.read_text(encoding="utf-8")) for path, found in classes.items()}


def _from_host(where: Mapping[str, Any]) -> dict[str, str]:
    from ...agents.marks import Returns
    from ...agents.stubs import Methods, stub_of

    classes: dict[str, Methods] = {}
    with open_client(**where) as client:
        for agent in client.get_agent_list():
            name = agent["class"].rpartition(":")[2].rpartition(".")[2]
            if name not in classes:
                described = client.get_agent(agent["agent_id"]).__zmqagents_ref__().methods
                pairs = {method: text.partition(" ")[::2] for method, text in described.items()}
                classes[name] = {
                    method: (cast(Returns, mark.rstrip("!")), signature) for method, (mark, signature) in pairs.items()
                }
    return {"agents": stub_of(classes)} if classes else {}


def _write(path: Path, text: str) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise errors.ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    return str(path)
