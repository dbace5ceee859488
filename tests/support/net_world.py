"""Machines that a cable connects: each a network namespace of its own, all on one bridge, in a namespace as well.

Nothing of it is in the network of this machine. A namespace lives as long as the process that holds it, and that ends
with this one: nothing is left behind, however the test ends. A machine whose `cut` was called has lost its cable:
what is sent to it, and what it sends, is gone, and nobody is told.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

__all__ = ["Machine", "Network", "needs_network", "network"]

NETWORK = "10.77.0"
HUB = 254  # the last part of the address of the machine that has the bridge


@functools.cache
def _why_not() -> str:
    """Why this machine cannot have such networks; "" if it can."""
    if sys.platform != "linux" or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return "needs ip, unshare and nsenter"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try:
        with network(1) as found:
            found.cut(1)
    except (OSError, subprocess.SubprocessError) as exc:
        return f"this machine allows no network namespaces: {exc}"
    return ""


class Machine:
    """One network namespace. ``within``: what stands before a command that is to run there."""

    def __init__(self, number: int) -> None:
        self.address = f"{NETWORK}.{number}"
        hold = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"]
        self._holder = subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            _, why = self._holder.communicate()
            raise OSError(why.decode().strip())

    @property
    def within(self) -> list[str]:
        """The words before a command."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    @property
    def pid(self) -> int:
        """A process in it."""
        return self._holder.pid

    def run(self, *words: str) -> None:
        """Run a short command there."""
        subprocess.run([*self.within, *words], check=True, capture_output=True, timeout=20)

    def close(self) -> None:
        """Give the namespace up; it is gone with the last process in it."""
        self._holder.communicate()


class Network:
    """Machines 1 to ``count``, and the hub, from which all can be reached."""

    def __init__(self, stack: contextlib.ExitStack, count: int) -> None:
        self.hub = stack.enter_context(contextlib.closing(Machine(HUB)))
        self.hub.run("ip", "link", "add", "bridge0", "type", "bridge")
        self.hub.run("ip", "address", "add", f"{self.hub.address}/24", "dev", "bridge0")
        self.hub.run("ip", "link", "set", "bridge0", "up")
        self._machines = [stack.enter_context(contextlib.closing(Machine(number + 1))) for number in range(count)]
        for number, machine in enumerate(self._machines, 1):
            end = ["ip", "link", "add", f"cable{number}", "type", "veth", "peer", "name", "eth0", "netns"]
            self.hub.run(*end, str(machine.pid))
            self.hub.run("ip", "link", "set", f"cable{number}", "master", "bridge0", "up")
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")

    def __getitem__(self, number: int) -> Machine:
        """From 1 on."""
        return self._machines[number - 1]

    def cut(self, number: int) -> None:
        """Pull the cable of a machine."""
        self.hub.run("ip", "link", "set", f"cable{number}", "down")

    def mend(self, number: int) -> None:
        """Put it in again."""
        self.hub.run("ip", "link", "set", f"cable{number}", "up")


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """A network of this block alone."""
    with contextlib.ExitStack() as stack:
        yield Network(stack, count)


def needs_network() -> None:
    """Skip the test where there can be none."""
    if _why_not():
        pytest.skip(_why_not())
