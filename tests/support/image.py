"""The Dockerfile, as its instructions."""

from __future__ import annotations

import re

from hosts import ROOT

DOCKERFILE = ROOT / "packaging" / "Dockerfile"


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage: ``[("FROM", "python:..."), ...]``."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            found.append([])
        if name:
            found[-1].append((name, rest.strip()))
    return found
