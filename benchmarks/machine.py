"""What figures were taken on: without it they say nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import zmq

import zmqagents

from .driver import ROOT, python_of
from .peers import REQUIREMENTS


def describe() -> dict[str, Any]:
    """The machine, its load before the benchmark, and the versions."""
    versions = {name: importlib.metadata.version(name) for name in ("pyzmq", "msgpack", "click", "cachetools")}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "load_before": round(os.getloadavg()[0], 2),  # above about 0.3, somebody else was measured too
        **versions,
        "zmqagents": zmqagents.__version__,
        "revision": _revision(),
    }


def peers(names: list[str]) -> dict[str, str]:
    """The versions of peers, each asked in its own environment."""
    found = {}
    for name in names:
        package = re.split(r"[\[=<>]", REQUIREMENTS[name][0])[0]
        source = f"import importlib.metadata as m; print(m.version({package!r}))"
        found[name] = subprocess.run([python_of(name), "-c", source], capture_output=True, text=True).stdout.strip()
    return found


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
