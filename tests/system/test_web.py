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
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hosts import eventually, free_port, is_gone
from zmqagents import AgentBase, CallCancelled, RpcAgentServerLauncher, RpcClient, async_func, current_call
from zmqagents.security.keys import KeyStore, new_pair
from zmqagents.security.tokens import token_of

pytestmark = pytest.mark.timeout(120)
LIMIT_S = 30.0


class Echo(AgentBase):
    def echo(self, value: int) -> int:
        return value

    def fail(self) -> None:
        raise ValueError("<b>no</b>")


class Sleeper(AgentBase):
    @async_func
    def hold(self) -> bool:
        call = current_call()
        assert call is not None
        return call.wait_cancelled(LIMIT_S)


class Web:
    """The process, and requests to it."""

    def __init__(self, url: str, link: str) -> None:
        self.port = int(url.rpartition(":")[2])
        self.token = link.rpartition("#token=")[2]

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer of the API; ``token``: default that of the link."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
            headers |= {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, f"/api/{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

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
        told = json.loads(process.stdout.readline())
        try:
            yield Web(told["url"], told["web"])
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


# ---------------------------------------------------------------- the API


@contextlib.contextmanager
def watched() -> Iterator[tuple[RpcAgentServerLauncher, RpcClient, Web]]:
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Echo, Sleeper], local_mode=True, grace_s=0.2) as launcher,
        RpcClient("localhost", launcher.port) as client,
        web_of(launcher.port) as web,
    ):
        yield launcher, client, web


def test_the_api_tells_what_the_shell_tells_in_the_same_shapes() -> None:
    with watched() as (launcher, client, web):
        echo, sleeper = client.create_agent(Echo), client.create_agent(Sleeper)
        with contextlib.suppress(ValueError):
            echo.fail()
        held = sleeper.hold()
        assert eventually(lambda: client.get_call_list()[0]["state"] == "running", LIMIT_S)
        (call,) = web.ask("GET", "calls")[1]["calls"]
        (same,) = client.get_call_list()
        assert {**call, "age_s": 0, "time_left_s": 0} == {**same, "age_s": 0, "time_left_s": 0}
        status, told = web.ask("GET", f"call?id={held.task_id}")
        assert (status, told["call"]["task_id"], told["around"]) == (200, held.task_id, [])
        assert "wait_cancelled" in told["call"]["stack"]
        assert 0 < told["call"]["arguments_bytes"] < 100
        assert web.ask("GET", "graph") == (200, {"calls": []})
        (error,) = web.ask("GET", "errors")[1]
        assert (error["error"], error["message"], error["count"]) == ("ValueError", "<b>no</b>", 1)
        agents = web.ask("GET", "agents?q=echo")[1]
        assert [row["agent_id"] for row in agents["agents"]] == [echo.agent_id]
        assert (agents["next"], agents["total"]) == (None, 2)
        agent = web.ask("GET", f"agent?id={echo.agent_id}")[1]
        methods = {row["name"]: row["signature"] for row in agent["methods"]}
        assert methods["echo"].startswith("(value: ")
        (host,) = web.ask("GET", "hosts")[1]
        assert (host["id"], host["up"], host["agents_total"]) == (launcher.server_id, True, 2)
        assert web.ask("GET", "host")[1]["settings"]["max_agents"] == 100_000
        assert web.ask("GET", "results")[1]["results"][0]["task_id"] == held.task_id
        assert web.ask("GET", "logs")[0] == 400, "this host was begun by a program, and keeps no lines"
        assert set(web.ask("GET", "series")[1]) > {"t", "ok_per_s", "p99_s"}
        assert {"name": "link", "role": "admin"}.items() <= web.ask("GET", "me")[1].items()
        assert "self" in {row["name"] for row in web.ask("GET", "keys")[1]}
        held.cancel()


def test_what_the_page_has_done_is_done() -> None:
    with watched() as (_, client, web):
        sleeper = client.create_agent(Sleeper)
        held = sleeper.hold()
        status, told = web.ask("POST", "cancel", {"id": held.task_id})
        assert (status, told["cancelled"]) == (200, True)
        with pytest.raises(CallCancelled):
            held.result(LIMIT_S)
        assert web.ask("POST", "cancel", {"id": held.task_id})[1]["text"] == "it had ended already"
        assert web.ask("POST", "delete", {"id": sleeper.agent_id})[0] == 200
        assert web.ask("POST", "delete", {"id": sleeper.agent_id})[0] == 404
        assert client.get_agent_list() == []
        bodies: list[Any] = [{}, {"id": 5}, [], "x"]
        for body in bodies:
            assert web.ask("POST", "delete", body)[0] == 400
        assert web.ask("POST", "drain", {"grace_s": 0.1}) == (200, {"draining": True})
        assert eventually(lambda: not web.ask("GET", "hosts")[1][0]["up"], LIMIT_S)
        assert web.ask("GET", "calls")[0] == 503


def test_each_token_may_do_what_its_key_may_and_its_calls_are_that_users() -> None:
    store = KeyStore.open()
    with watched() as (_, client, web):
        for name, role in (("ann", "call"), ("eve", "view")):
            store.authorize(name, new_pair().public, role)  # type: ignore[arg-type]
        try:
            ann, eve = token_of(store, "ann"), token_of(store, "eve")
            assert eventually(lambda: web.ask("GET", "calls", token=ann)[0] == 200, LIMIT_S)
            assert eventually(lambda: web.ask("GET", "calls", token=eve)[0] == 200, LIMIT_S)
            sleeper = client.create_agent(Sleeper)
            held = sleeper.hold()
            assert eventually(lambda: len(web.ask("GET", "calls", token=eve)[1]["calls"]) == 1, LIMIT_S)
            (seen,) = web.ask("GET", "calls", token=eve)[1]["calls"]
            assert seen["task_id"] == f"{held.task_id[:4]}..-{held.task_id.rpartition('-')[2]}"
            assert web.ask("GET", f"call?id={seen['task_id']}", token=eve)[1]["call"]["method"] == "hold"
            assert web.ask("GET", "calls", token=ann)[1]["calls"] == [], "the call of another user"
            for token in (ann, eve):
                for path, body in (
                    ("cancel", {"id": held.task_id}),
                    ("delete", {"id": sleeper.agent_id}),
                    ("drain", {}),
                ):
                    assert web.ask("POST", path, body, token)[0] == 403, path
            assert web.ask("GET", "errors", token=ann)[0] == web.ask("GET", "keys", token=ann)[0] == 403
            assert len(client.get_call_list()) == 1
            store.revoke("ann")
            assert eventually(lambda: web.ask("GET", "calls", token=ann)[0] == 401, LIMIT_S)
            held.cancel()
        finally:
            for name in ("ann", "eve"):
                store.revoke(name)


def test_without_a_token_nothing_is_told_and_the_page_is_empty() -> None:
    with web_of(free_port()) as web:
        for path in ("calls", "me", "stream", "nothing"):
            assert web.ask("GET", path, token="wrong")[0] == 401
        assert web.ask("POST", "session", {"token": "wrong"}, token="")[0] == 401
        status, text = web.get("/agents")
        assert (status, 'id="app"></div>' in text) == (200, True)


def test_the_stream_tells_a_tick_a_second_and_that_a_host_is_away() -> None:
    with web_of(free_port()) as web:
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=LIMIT_S)
        connection.request("GET", "/api/stream", headers={"Authorization": f"Bearer {web.token}"})
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        ticks: list[Any] = []
        while len(ticks) < 2:
            line = answer.readline().decode()
            if line.startswith("data: "):
                assert len(line) < 8192
                ticks.append(json.loads(line[6:]))
        assert [tick["hosts"][0]["up"] for tick in ticks] == [False, False]
        assert 0.5 < ticks[1]["at"] - ticks[0]["at"] < 10
        connection.close()


def test_the_link_is_printed_again_while_the_process_runs() -> None:
    def url(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zmqagents", "web", "--url", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)

    assert url().returncode == 4
    with web_of(free_port()) as web, web_of(free_port()) as other:
        assert url().returncode == 2, "two run, and none at the default port"
        at = ("--listen", str(web.port))
        assert url(*at).stdout == f"http://127.0.0.1:{web.port}/#token={web.token}\n"
        view = json.loads(url(*at, "--role", "view", "--json").stdout)["web"].rpartition("=")[2]
        assert web.ask("GET", "me", token=view)[1]["role"] == "view"
        assert other.ask("GET", "me", token=view)[0] == 401
    assert url().returncode == 4


def test_a_host_started_with_a_page_says_where_it_is_and_takes_it_along(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "zmqagents", "start", "--port", "0", "--local-mode", "--json", "--web", "0"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            url = told["web"].partition("/#token=")[0]
            web = Web(url, told["web"])
            assert web.ask("GET", "host")[1]["server_id"] == told["server_id"]
            assert "begins" in web.ask("GET", "logs")[1]["lines"][0]["msg"]
            again = subprocess.run([*start[:-1], str(web.port)], capture_output=True, text=True, timeout=LIMIT_S)
            assert (again.returncode, again.stdout) == (3, "")
            assert f"port {web.port} is in use" in again.stderr
            [page] = psutil.Process(process.pid).children()
            process.kill()  # it can take nothing along any more

            def is_silent() -> bool:  # while it is asked it finds that the host is gone, and removes its files
                with contextlib.suppress(OSError):
                    return web.get("/livez")[0] == 0
                return True

            assert eventually(is_silent, LIMIT_S)
            assert eventually(lambda: is_gone(page.pid), LIMIT_S)
        finally:
            process.kill()
