"""The page that says how to watch hosts: its commands are run, in their order, and start what they are to start."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hosts import free_port
from span_collector import collecting

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "monitoring.rst").read_text(encoding="utf-8")
SHOP = """
from zmqagents import AgentBase


class Inventory(AgentBase):
    def count(self):
        return 3
"""
CLIENT = """
import os
from zmqagents import RpcClient

with RpcClient("localhost", int(os.environ["PORT"])) as client:
    assert client.create_agent("shop:Inventory").count() == 3
"""
TRIES_S = 30.0


def blocks(language: str) -> list[str]:
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?: {{4}}.*\n|\n)+)", PAGE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() for block in found]


@contextlib.contextmanager
def shell(cwd: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """What is started in the background ends with the test."""
    background: list[subprocess.Popen[bytes]] = []
    try:
        yield background
    finally:
        for process in reversed(background):
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def run(line: str, cwd: Path, background: list[subprocess.Popen[bytes]], **more: str) -> None:
    """One command, as a shell would run it; what needs another one to have begun is tried again until that has."""
    words = shlex.split(line.removesuffix("&"))
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    command = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    environment = {**os.environ, **variables, **more}
    programs = {
        "as_server": [sys.executable, "-m", "zmqagents"],
        "opentelemetry-instrument": [str(Path(sys.executable).with_name("opentelemetry-instrument"))],
    }
    if command[0] == "curl":
        again(lambda: urllib.request.urlopen(command[-1], timeout=20).read())
        return
    full = [sys.executable if word == "python" else word for word in [*programs[command[0]], *command[1:]]]
    if line.endswith("&"):
        background.append(subprocess.Popen(full, cwd=cwd, env=environment, stdout=subprocess.DEVNULL))
        return
    again(lambda: subprocess.run(full, cwd=cwd, env=environment, check=True, capture_output=True, timeout=60))


def again(action: object) -> None:
    end = time.monotonic() + TRIES_S
    while True:
        try:
            action()  # type: ignore[operator]
            return
        except (OSError, subprocess.CalledProcessError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def with_ports(text: str) -> str:
    """The page's ports may be taken here."""
    for port in ("12010", "12011", "8080"):
        text = re.sub(rf"\b{port}\b", str(free_port()), text)
    return text


def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    lines = with_ports(blocks("sh")[0]).splitlines()
    assert lines[0] == 'pip install "zmqagents[web,otel]"'
    with shell(tmp_path) as background:
        for line in lines[1:]:
            run(line, tmp_path, background)
        assert len(background) == 2


def test_the_page_has_a_host_and_a_program_whose_spans_arrive_where_they_are_to(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "client.py").write_text(CLIENT)
    host, install, program = with_ports(blocks("sh")[1]).replace("ARG=0.01", "ARG=1").splitlines()
    assert install == "pip install opentelemetry-distro"
    port = re.search(r"--port (\d+)", host)
    assert port is not None
    with collecting() as collector, shell(tmp_path) as background:
        run(host, tmp_path, background, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="50")
        run(
            program, tmp_path, background, PORT=port[1], OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none",
        )  # fmt: skip
        spans = collector.wait_for(lambda spans: sum(span.name == "shop.Inventory/count" for span in spans) >= 2)
    client, server = (
        next(span for span in spans if span.name == "shop.Inventory/count" and span.kind == kind)
        for kind in ("CLIENT", "SERVER")
    )
    assert server.parent == client.id
    assert (client.service["service.name"], server.service["service.name"]) == ("till", "shop")


def test_prometheus_can_read_what_the_page_says() -> None:
    (text,) = blocks("yaml")
    settings = yaml.safe_load(text)
    assert [(ROOT / "packaging" / "prometheus" / name).exists() for name in settings["rule_files"]] == [True]
    (job,) = settings["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]
