"""Make the environments of the peers: ``python -m benchmarks.peers [--again] [NAME...]``.

One at a time, since pip takes a core and some of them are large. Exit status 0, also when one could not be made.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from ..driver import PEER_ENVIRONMENTS, PEERS
from . import REQUIREMENTS

TIMEOUT_S = 900


def make(name: str) -> str:
    """Make one environment; "" or why it could not be made, which is also kept in ``NAME.failed``."""
    directory = PEER_ENVIRONMENTS / name
    failed = directory.with_suffix(".failed")
    shutil.rmtree(directory, ignore_errors=True)
    failed.unlink(missing_ok=True)
    venv.create(directory, with_pip=True)
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run([*command, *REQUIREMENTS[name]], capture_output=True, text=True, timeout=TIMEOUT_S)
        reason = "" if done.returncode == 0 else last_error(done.stderr)
    except subprocess.TimeoutExpired:
        reason = f"pip did not end within {TIMEOUT_S} s"
    if reason:
        shutil.rmtree(directory)
        failed.write_text(reason + "\n", encoding="utf-8")
    return reason


def last_error(text: str) -> str:
    """The line in which pip says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip failed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Install the peers.")
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], metavar="NAME", help="of " + ", ".join(PEERS))
    parser.add_argument("--again", action="store_true", help="also those that are there")
    given = parser.parse_args()
    for name in given.names or PEERS:
        if Path(PEER_ENVIRONMENTS, name, "bin").is_dir() and not given.again:
            print(f"{name}: is there", file=sys.stderr)
            continue
        print(f"{name}: installing {' '.join(REQUIREMENTS[name])}", file=sys.stderr)
        reason = make(name)
        print(f"{name}: {'NOT INSTALLED: ' + reason if reason else 'installed'}", file=sys.stderr)


if __name__ == "__main__":
    main()
