"""A crawler with back-pressure: pages are found no faster than they are read, and read by two agents at once."""

import time
from collections.abc import Iterator

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, concurrent, method


class Finder(AgentBase):
    """Finds pages: an endless stream, of which 16 are made ahead of the reader at most."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    @method
    def pages(self) -> Iterator[str]:
        """Addresses, as they are found."""
        while True:
            self.found += 1
            yield f"page-{self.found}"

    @concurrent
    def count(self) -> int:
        """How many were found by now."""
        return self.found


class Reader(AgentBase):
    """Reads pages, one at a time."""

    def words(self, page: str) -> int:
        """How many words the page has."""
        time.sleep(0.01)
        return len(page)


if __name__ == "__main__":
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Finder, Reader]) as server,
        RpcClient(server.host, server.port) as client,
    ):
        finder = client.create_agent(Finder)
        with client.pool(Reader, 2) as readers, finder.pages() as pages:
            counts = readers.words.map(pages)
            print("words of 20 pages:", sum(next(counts) for _ in range(20)))
            print("found no more than needed:", finder.count() <= 20 + 2 * 2 + 2 * 16 + 1)
            counts.close()
