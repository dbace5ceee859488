"""How a host logs as a program."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["LogSettings"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
OUTPUTS = ("log", "stderr", "off")


class LogSettings(NamedTuple):
    """How the program logs. ``output``: what becomes of what agents print. ``child``: its name, if it is a process of
    a host's, which gets its lines.
    """

    level: str = "warning"
    format: str = "text"
    output: str = "log"
    child: str = ""

    @property
    def mistake(self) -> str:
        """What is wrong with them, "" if nothing is."""
        for what, value, known in (
            ("level", self.level, LEVELS), ("format", self.format, FORMATS), ("output", self.output, OUTPUTS),
        ):  # fmt: skip
            if value not in known:
                return f"{what} must be one of {', '.join(known)}, not {value!r}"
        if self.format == "json" and self.output == "stderr":
            return "what agents print is no JSON: with the format json it goes to the log (output log) or nowhere (off)"
        return ""

    def public(self) -> dict[str, Any]:
        """As plain data."""
        return self._asdict()
