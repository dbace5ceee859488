"""What a page of the documentation installs, for tests that type its commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def path_with_commands(folder: Path) -> str:
    """A PATH whose ``as_server`` and ``python`` are of this interpreter; ``folder`` gets a ``bin`` for them."""
    commands = folder / "bin"
    commands.mkdir()
    for name, words in {"as_server": "-m zmqagents", "python": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    return f"{commands}:{os.environ['PATH']}"
