"""The agents of a host, their calls and its files."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...config import MEBIBYTE
from .. import completing
from ..command import DashVerb, Verb
from ..options import as_json, of_values, on_host, option, with_traceback, within
from ..output import say, show, show_rows
from ..values import read_arguments
from ..where import open_client

if TYPE_CHECKING:
    from ...client.proxy import AgentProxy
    from ...client.result import AsyncResult
    from ...client.rpc import RpcClient

__all__ = ["call", "cancel", "create", "delete", "download", "result"]


@click.command(cls=DashVerb)
@click.argument("class_name", metavar="CLASS", shell_complete=completing.classes)
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
    for name in {"agent_id", "cls_or_name", "if_exists"} & kwargs.keys():  # parameters of create_agent itself
        raise click.UsageError(f"{name}= cannot be given here; the id of the agent is --agent-id")
    with open_client(timeout=timeout, **where) as client:
        made = client.create_agent(class_name, *args, agent_id=agent_id, **kwargs)
    made_id = made.__zmqagents_places__()[0]  # not .agent_id, which may be the agent's own attribute
    show({"agent_id": made_id, "class": class_name} if as_json else made_id, as_json)


@click.command(cls=Verb)
@click.argument("agent", shell_complete=completing.agents)
@on_host
@as_json
def delete(agent: str, as_json: bool, **where: Any) -> None:
    """Delete an agent: its queued calls end in AgentDeleted."""
    with open_client(**where) as client:
        client.delete_agent(agent)
    show({"deleted": agent} if as_json else f"deleted {agent}", as_json)


@click.command(cls=DashVerb)
@click.argument("agent", shell_complete=completing.agents)
@click.argument("method", shell_complete=completing.methods)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@on_host
@of_values
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


def _wait_for(result: AsyncResult[Any]) -> Any:
    try:
        return result.result()
    except KeyboardInterrupt:
        say(f"the call goes on; as_server result {result.task_id} gives its result, as_server cancel ends it")
        raise


def _submit(client: RpcClient, proxy: AgentProxy, method: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Make an asynchronous call; its task id, once the host has it."""
    call = _bound(proxy, method)
    if _returns(proxy, method) != "future":
        raise click.UsageError(f"the result of {method} is not kept: call it without --no-wait, or make it `async def`")
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
    found = proxy.__zmqagents_method__(method)
    return None if found is None else found.returns


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
    offered = sorted(proxy.__zmqagents_ref__().methods)
    text = f"{proxy.__zmqagents_places__()[0]} has no public method {name!r}; it has: {', '.join(offered) or 'none'}"
    return errors.UnknownMethod(text + errors.did_you_mean(name, offered))


@click.command(cls=Verb)
@click.argument("task_id", required=False)
@option("--list", "listed", is_flag=True, help="List the results that are kept instead, the latest first.")
@on_host
@of_values
@option("--wait/--no-wait", default=True, help="Wait for it if need be (default), or exit 6 if it is not there.")
@within
@as_json
@with_traceback
def result(
    task_id: str | None, listed: bool, wait: bool, timeout: float | None, as_json: bool, traceback: bool, **where: Any
) -> None:
    """Print the result of a call of any client; waits until the call has ended."""
    if (task_id is None) is not listed:
        raise click.UsageError("give a task id, or --list")
    with open_client(**where) as client:
        if task_id is None:
            rows = client.get_result_list()
            show_rows(rows, ("task_id", "state", "age_s", "bytes"), as_json, "no results")
            return
        value = client.get_result(task_id, timeout if wait else 0.001).result()
        show(value, as_json)


@click.command(cls=Verb)
@click.argument("task_id", shell_complete=completing.tasks)
@on_host
@as_json
def cancel(task_id: str, as_json: bool, **where: Any) -> None:
    """Cancel a call: one that waits never runs, one that runs is told."""
    with open_client(**where) as client:
        ending = client.get_result(task_id, timeout=5.0)  # asked for first: it tells how the call has ended
        try:
            client.cancel(task_id)
        except errors.ZmqAgentsError:
            with contextlib.suppress(errors.ZmqAgentsError):
                ending.result()  # looked at, so that nobody is told that it was not
            raise
        is_cancelled = False
        try:
            ending.result()
        except errors.CallCancelled:
            is_cancelled = True
        except errors.AgentCallError:
            pass
    text = f"cancelled {task_id}" if is_cancelled else f"{task_id} had ended already"
    show({"task_id": task_id, "cancelled": is_cancelled} if as_json else text, as_json)


@click.command(cls=Verb)
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
