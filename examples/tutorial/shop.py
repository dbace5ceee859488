"""The agent of the how-to pages: what is in stock."""

import asyncio


class Inventory:
    """Keeps items, ``limit`` of them at most."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.kept: list[str] = []

    def add(self, item: str) -> int:
        """Put an item in; how many there are now."""
        if len(self.kept) >= self.limit:
            raise ValueError(f"there is room for {self.limit} items")
        self.kept.append(item)
        return len(self.kept)

    def items(self) -> list[str]:
        """All of them."""
        return self.kept

    async def count(self) -> int:
        """How many there are. Callers get a result to come, which the host keeps."""
        await asyncio.sleep(0.01)
        return len(self.kept)
