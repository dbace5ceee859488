"""``as_server web``: a process of its own that tells of a host which may come and go."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hosts import eventually, free_port
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func, current_call

pytestmark = pytest.mark.timeout(120)
LIMIT_S = 30.0


class Echo(AgentBase):
    def echo(self, value: int) -> int:
        return value


class Sleeper(AgentBase):
    @async_func
    def hold(self) -> bool:
        call = current_call()
        assert call is not None
        return call.wait_cancelled(LIMIT_S)


class Web:
    """The process, and requests to it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request("GET", path, headers={"Host": f"127.0.0.1:{self.port}", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@contextlib.contextmanager
def web_of(port: int | None) -> Iterator[Web]:
    command = [sys.executable, "-m", "zmqagents", "web", "--listen", "127.0.0.1:0", "--json", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        try:
            yield Web(int(url.rpartition(":")[2]))
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) in (0, -signal.SIGTERM)
        finally:
            process.kill()


def test_what_a_host_does_can_be_read_as_prometheus_reads_it() -> None:
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Echo], local_mode=True) as launcher,
        RpcClient("localhost", launcher.port) as client,
        web_of(launcher.port) as web,
    ):
        agent = client.create_agent(Echo)
        for number in range(20):
            agent.echo(number)
        status, text = web.get("/metrics")
        assert status == 200
        found = {
            (sample.name, sample.labels.get("method"), sample.labels.get("outcome")): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples
        }  # fmt: skip
        assert found["zmqagents_calls_total", "echo", "ok"] == 20
        assert found["zmqagents_host_up", None, None] == 1
        assert f'host="{launcher.server_id}"' in text
        assert web.get("/livez") == web.get("/readyz") == (200, "ok\n")
        status, text = web.get("/metrics", Accept="application/openmetrics-text")
        assert (status, text.endswith("# EOF\n")) == (200, True)


def test_a_name_of_another_site_reads_nothing() -> None:
    with web_of(free_port()) as web:
        for path in ("/metrics", "/livez", "/readyz"):
            assert web.get(path, Host="evil.example")[0] == 400
        assert web.get("/nothing")[0] == 404


def test_a_host_that_goes_is_down_within_a_second_and_up_again_when_it_is_back() -> None:
    port = free_port()
    with web_of(port) as web:
        assert web.get("/readyz")[0] == web.get("/livez")[0] == 503
        assert re.search(r"zmqagents_host_up\{.*\} 0", web.get("/metrics")[1])
        for _ in range(2):
            with RpcAgentServerLauncher(custom_agent_classes=[Echo], local_mode=True, port=port) as launcher:
                assert eventually(lambda: web.get("/readyz")[0] == 200, 10)
                assert launcher.pid is not None
                os.kill(launcher.pid, signal.SIGKILL)
                assert eventually(lambda: web.get("/readyz")[0] == 503, 10)
            assert web.get("/livez") == (200, "ok\n"), "it has answered within 30 s"
            assert re.search(r"zmqagents_host_up\{.*\} 0", web.get("/metrics")[1])


def test_a_host_that_stops_is_not_ready_and_says_why() -> None:
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Sleeper], local_mode=True, grace_s=30.0) as launcher,
        RpcClient("localhost", launcher.port) as client,
        web_of(launcher.port) as web,
    ):
        assert web.get("/readyz")[0] == 200
        waiting = client.create_agent(Sleeper)
        waiting.hold()
        client.stop(20.0)
        status, text = web.get("/readyz")
        assert (status, text.startswith("it is stopping")) == (503, True)
        assert web.get("/livez")[0] == 200
        client.stop(0.0)


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "example.org:80", "127.0.0.1", "127.0.0.1:99999"])
def test_nothing_is_served_to_other_machines(listen: str) -> None:
    command = [sys.executable, "-m", "zmqagents", "web", "--listen", listen, "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert "--listen" in done.stderr


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "uvicorn").mkdir()
    (tmp_path / "uvicorn" / "__init__.py").write_text("raise ImportError('none here', name='uvicorn')")
    command = [sys.executable, "-m", "zmqagents", "web", "--port", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 2
    assert done.stderr == "as_server web: uvicorn is missing: pip install 'zmqagents[web]'\n"
