"""A shared cache: several programs ask one agent for a table that is slow to make. With pandas it is a data frame."""

import subprocess
import sys
import threading
import time
from typing import Any

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient

try:
    import pandas
except ImportError:  # then a dict of columns: it travels as well
    pandas = None  # type: ignore[assignment,unused-ignore]


class Cache(AgentBase, max_concurrency=8):
    """Makes each table once, however many ask for it at the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.lock = threading.Lock()  # needed, because eight calls may run at once
        self.tables: dict[int, Any] = {}

    def table(self, rows: int) -> Any:
        """The squares of the first numbers."""
        with self.lock:
            if rows not in self.tables:
                time.sleep(0.2)
                self.made += 1
                columns = {"n": list(range(rows)), "square": [n * n for n in range(rows)]}
                self.tables[rows] = pandas.DataFrame(columns) if pandas is not None else columns
            return self.tables[rows]


ASK = "import sys; from zmqagents import RpcClient\n" \
      "table = RpcClient('localhost', int(sys.argv[1])).get_agent('cache').table(1000)\n" \
      "print(sum(table['square']))\n"  # fmt: skip

if __name__ == "__main__":
    with RpcAgentServerLauncher(custom_agent_classes=[Cache]) as server, RpcClient(server.host, server.port) as client:
        cache = client.create_agent(Cache, agent_id="cache")
        command = [sys.executable, "-c", ASK, str(server.port)]
        programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        print("sums:", {program.communicate()[0].strip() for program in programs})
        print("made:", cache.made, "time(s)")
