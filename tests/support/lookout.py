"""An agent that tells what its process has imported."""

from __future__ import annotations

import sys

from zmqagents import AgentBase, async_func


class Lookout(AgentBase):
    def count(self, package: str) -> int:
        return sum(name.partition(".")[0] == package for name in sys.modules)

    @async_func
    def later(self, package: str) -> int:
        return self.count(package)
