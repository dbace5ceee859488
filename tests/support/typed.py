"""What a page of the documentation installs, for tests that type its commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def path_with_commands(folder: Path, others: Mapping[str, str] = {}) -> str:
    """A PATH with this interpreter's ``as_server`` and ``python``, and others; ``folder`` gets a ``bin`` for them."""
    commands = folder / "bin"
    commands.mkdir()
    ours = {"as_server": f'"{sys.executable}" -m zmqagents', "python": f'"{sys.executable}"'}
    for name, command in {**ours, **{name: f'"{program}"' for name, program in others.items()}}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (commands / name).chmod(0o755)
    return f"{commands}:{os.environ['PATH']}"
