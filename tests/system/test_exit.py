"""What a program does with agents while its interpreter ends."""

from __future__ import annotations

import pytest

from hosts import output_of

PROGRAM = """
import json, sys
from zmqagents import AgentBase, HostUnreachable

class Agent(AgentBase):
    def f(self, x):
        return x
    async def later(self, x):
        return x
    def items(self, n):
        yield from range(n)

class Holder:
    def __init__(self, agent):
        self.agent = agent
    def __del__(self):
        agent = self.agent
        try:
            USE
        except HostUnreachable:
            print(json.dumps("refused"), flush=True)

holder = Holder(Agent().to_dist())
assert holder.agent.f(1) == 1
"""


@pytest.mark.parametrize(
    "use", ["agent.f(2)", "agent.later(0).result()", "list(agent.items(2))", "agent.name", "agent.f.aio(1)"]
)
def test_a_call_of_a_finalizer_at_the_end_of_the_program_is_refused_at_once(use: str) -> None:
    assert output_of(PROGRAM.replace("USE", use)) == "refused"
