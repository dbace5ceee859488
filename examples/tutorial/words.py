"""An agent of the tutorial: it keeps the words that it has read."""

import re


class Words:
    """Knows words of at least ``least`` letters."""

    def __init__(self, least: int = 1) -> None:
        self.least = least
        self.words: list[str] = []

    def read(self, text: str) -> int:
        """Take the words of a text; how many there are now."""
        self.words += [word for word in re.findall(r"\w+", text) if len(word) >= self.least]
        return len(self.words)

    def longest(self) -> str:
        """The longest word, the first of several."""
        return max(self.words, key=len)

    def counted(self) -> dict[str, int]:
        """How often each word was read."""
        return {word: self.words.count(word) for word in sorted(set(self.words))}
