"""The classes of the hosts. The version of the state is the environment's: so one host may be newer than another."""

from __future__ import annotations

import os

from zmqagents import AgentBase, once

__all__ = ["Account", "Echo"]


class Echo(AgentBase):
    """Keeps nothing."""

    def echo(self, value: bytes) -> bytes:
        return value


class Account(AgentBase):
    """Has a state of some 250 bytes, which is in Redis before the caller has its answer."""

    state_version = int(os.environ.get("BENCH_STATE_VERSION", "1"))
    state_writes = int(os.environ.get("BENCH_STATE_WRITES", str(state_version)))

    def __init__(self) -> None:
        self.cents, self.padding = 0, "x" * 220

    def save_state(self) -> list[int | str]:
        return [self.cents, self.padding]

    def load_state(self, state: list[int | str], version: int) -> None:
        self.cents, self.padding = int(state[0]), str(state[1])

    def add(self, cents: int) -> int:
        self.cents += cents
        return self.cents

    @once
    def pay(self, cents: int) -> int:
        """The same, once, whatever is sent again."""
        self.cents += cents
        return self.cents

    def look(self) -> int:
        return self.cents
