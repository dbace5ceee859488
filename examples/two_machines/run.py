"""Two machines, each a network namespace with a user's keys of its own: a host on one, a client on the other.

As root on Linux, because it makes namespaces: ``sudo python examples/two_machines/run.py``.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PORT = "12010"
ADDRESS = {"za-near": "10.87.0.1", "za-far": "10.87.0.2"}
SHOP = "class Shop:\n    def sell(self, n):\n        return f'{n} sold'\n"


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def machines() -> Iterator[None]:
    """Two namespaces that a cable connects."""
    with contextlib.ExitStack() as made:
        for name in ADDRESS:
            ip("netns", "add", name)
            made.callback(ip, "netns", "delete", name)
        ip("link", "add", "za-cable", "netns", "za-near", "type", "veth", "peer", "name", "za-cable", "netns", "za-far")
        for name, address in ADDRESS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "za-cable")
            for device in ("lo", "za-cable"):
                ip("-n", name, "link", "set", device, "up")
        yield


def as_server(machine: str, home: Path, *words: str) -> tuple[list[str], dict[str, Any]]:
    """The command on one machine, and how `subprocess` is to run it."""
    place = home / machine
    place.mkdir(exist_ok=True)
    environment = os.environ | {"ZMQAGENTS_KEYS": str(place / "keys"), "ZMQAGENTS_RUNTIME": str(place / "run")}
    command = ["ip", "netns", "exec", machine, sys.executable, "-m", "zmqagents", *words]
    return command, {"cwd": place, "env": environment, "text": True}


def run(machine: str, home: Path, *words: str) -> str:
    """What a command says there."""
    command, how = as_server(machine, home, *words)
    done: subprocess.CompletedProcess[str] = subprocess.run(command, check=True, stdout=subprocess.PIPE, **how)
    return done.stdout.strip()


def main() -> None:
    """Exchange the keys, start the host, call it from the other machine."""
    with machines(), tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        keys = {name: json.loads(run(name, home, "keys", "show", "--json")) for name in ADDRESS}
        run("za-near", home, "keys", "add", "far", "--", keys["za-far"]["client"])
        run("za-far", home, "keys", "add", f"{ADDRESS['za-near']}:{PORT}", "--", keys["za-near"]["server"])
        (home / "za-near" / "shop.py").write_text(SHOP)
        words = ["start", "--port", PORT, "--host", ADDRESS["za-near"], "--agent", "s=shop:Shop"]
        command, how = as_server("za-near", home, *words)
        with subprocess.Popen(command, stdout=subprocess.PIPE, **how) as host:
            assert host.stdout is not None
            host.stdout.readline()
            print(run("za-far", home, "call", "--host", ADDRESS["za-near"], "--port", PORT, "s", "sell", "3"))
            host.terminate()


if __name__ == "__main__":
    main()
