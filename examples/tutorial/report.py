"""An agent of the tutorial that calls another one."""

from words import Words


class Report:
    """Writes down what other agents know."""

    def write(self, words: Words) -> str:
        """``words`` is a proxy: its methods are called as if it were local."""
        return ", ".join(f"{word}: {count}" for word, count in words.counted().items())
