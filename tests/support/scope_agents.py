"""Agents as programs for AgentScope 0.1.6 write them."""

from __future__ import annotations

import time
from typing import Any

from zmqagents.compat.agentscope import RpcMeta, async_func, get_model_config, sync_func


class Base(metaclass=RpcMeta):
    """What AgentScope's own base class has of this."""

    def __init__(self, name: str = "base") -> None:
        self.name = name

    @property
    def agent_id(self) -> str:
        """As in 0.1.6."""
        return self._oid  # type: ignore[attr-defined,no-any-return]  # set by the metaclass

    @async_func
    def reply(self, x: Any = None) -> Any:
        raise NotImplementedError

    @async_func
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.reply(*args, **kwargs)


class Adder(Base):
    """Changes what it gets."""

    def reply(self, x: Any = None) -> Any:  # overrides an async_func: is one
        x["value"] += 1
        return x

    @async_func
    def slow(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def own_id(self) -> str:
        return self.agent_id

    def apply(self, function: str) -> str:
        return f"{function} applied"

    @sync_func
    def fail(self) -> None:
        raise LookupError("not today")

    def model(self, name: str) -> str:
        return str(get_model_config(name)["model_name"])


class Gatherer(Base):
    """Asks others, and itself."""

    def __init__(self, name: str, agents: list[Any]) -> None:
        super().__init__(name)
        self.agents = agents

    def reply(self, x: Any = None) -> Any:
        results = [agent({"value": 10}) for agent in self.agents]
        return sum(result["value"] for result in results)

    def names(self) -> list[str]:
        return [agent.name for agent in self.agents]

    def ask(self, other: Any) -> Any:
        return other.names()


class Broken(Base):
    """Cannot be made."""

    def __init__(self) -> None:
        raise LookupError("not today")
