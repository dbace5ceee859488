"""`Opening`: the object of an agent that a factory makes, from the call of the factory to the end of the agent.

A factory gives an object, or something to be awaited for it, and that may be an async context manager. `Life` treats an
`Opening` as it treats the object of any agent with all hooks: it is entered and left in one task on the event loop, and
its ``on_start`` and ``on_stop`` are called in worker threads, which run those of the object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...agents.base import AgentBase
from ...agents.context import HostServices
from ...agents.factories.factory import Factory
from ...agents.factories.made import Made
from ...agents.spec import spec_of

__all__ = ["Opening"]


class Opening:
    """The object of an agent that ``factory`` makes: ``agent``, once it was entered.

    ``adapt`` gives what is hosted for an object: itself, or an adapter for it.
    """

    def __init__(
        self, factory: Factory, args: tuple[Any, ...], kwargs: dict[str, Any], adapt: Callable[[Any], Any],
        agent_id: str, services: HostServices,
    ) -> None:  # fmt: skip
        self.agent: Any = None
        self._factory = factory
        self._adapt = adapt
        self._known = {"_zmqagents_id": agent_id, "_zmqagents_host": services}
        self._entered: Any = None
        self._made = factory.make(*args, **kwargs)
        self.context = inspect.isawaitable(self._made) or _is_context(self._made)  # the event loop is needed
        if not self.context:
            self._take(self._made)

    async def __aenter__(self) -> Opening:
        made = self._made
        if not _is_context(made):
            made = await made
        if _is_context(made):
            entered = await type(made).__aenter__(made)
            self._entered, made = made, made if entered is None else entered
        self._take(made)
        return self

    async def __aexit__(self, *error: Any) -> Any:
        entered, self._entered = self._entered, None
        return None if entered is None else await type(entered).__aexit__(entered, *error)

    def discard(self) -> None:
        """The agent is not made after all. A coroutine that has not begun never will, and must not complain of it."""
        if inspect.iscoroutine(self._made) and inspect.getcoroutinestate(self._made) == inspect.CORO_CREATED:
            self._made.close()

    def _take(self, made: Any) -> None:
        if made is None or isinstance(made, type):
            raise TypeError(f"{self._factory.name} has given {made!r}, which is no agent")
        self.agent = self._adapt(made)
        if isinstance(self.agent, AgentBase):
            vars(self.agent).update(self._known)

    def on_start(self) -> Any:
        """Call that of the object."""
        return self.agent.on_start() if spec_of(type(self.agent)).hooks.on_start else None

    def on_stop(self) -> Any:
        """Call that of the object."""
        return self.agent.on_stop() if spec_of(type(self.agent)).hooks.on_stop else None

    def made(self) -> Made:
        """What is known of the agent now."""
        return Made.of(self.agent, context=self.context)


def _is_context(value: Any) -> bool:
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")
