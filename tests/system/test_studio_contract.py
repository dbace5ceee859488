"""``studio_url`` through the launcher: registered once it listens, and never in the way of anything.

How a registration itself goes, attempt by attempt, is in ``test_studio.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hosts import MODES, Worker, eventually, running, seconds_of
from zmqagents import RpcAgentServerLauncher, RpcClient

LAUNCH_S = 3.0  # a launch takes 0.3 s on an idle machine


class Studio(ThreadingHTTPServer):
    """Notes what is posted, and whether the server listened by then; ``answer`` gives status, type and body."""

    daemon_threads = False  # server_close waits for them

    def __init__(self, answer: Callable[[], tuple[int, str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.posts: queue.Queue[tuple[str, dict[str, Any], bool]] = queue.Queue()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Studio

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with socket.socket() as probe:
            listens = probe.connect_ex(("127.0.0.1", body["port"])) == 0
        self.server.posts.put((self.path, body, listens))
        status, kind, answer = self.server.answer()
        with contextlib.suppress(OSError):  # whoever hangs is not waited for
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def studio(answer: Callable[[], tuple[int, str, bytes]]) -> Iterator[Studio]:
    with Studio(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ok() -> tuple[int, str, bytes]:
    return 200, "application/json", b'{"status":"ok"}'


def refusal() -> tuple[int, str, bytes]:
    return 400, "text/html", b"<h1>Bad Request</h1>"


def page() -> tuple[int, str, bytes]:
    return 200, "text/html", b"<h1>Welcome</h1>"


@pytest.mark.parametrize("mode", MODES)
def test_a_server_is_registered_with_its_real_port_once_it_listens(mode: str) -> None:
    with studio(ok) as there, running(mode, studio_url=there.url, host="127.0.0.1", server_id="in-studio") as host:
        path, body, listened = there.posts.get(timeout=10)
        assert path == "/api/servers/register"
        assert body == {"server_id": "in-studio", "host": "127.0.0.1", "port": host.port}
        assert listened
        time.sleep(0.6)  # longer than the pause before a second attempt
        assert there.posts.empty()


def test_without_studio_url_nothing_is_sent_and_with_a_page_for_an_answer_it_is_tried_again() -> None:
    with studio(page) as there:
        with RpcAgentServerLauncher(studio_url=there.url):
            posts = [there.posts.get(timeout=10) for _ in range(2)]
        assert posts[0] == posts[1]
        while not there.posts.empty():
            there.posts.get()
        with RpcAgentServerLauncher():
            time.sleep(0.2)
        assert there.posts.empty()


def working_host(meanwhile: Callable[[], object], **options: Any) -> tuple[float, float]:
    """How long launch and shutdown take of a host that has answered a call in between."""
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker], **options)
    launch_s = seconds_of(server.launch)
    try:
        with RpcClient(server.host, server.port) as client:
            assert client.create_agent(Worker).echo("works") == "works"
        meanwhile()
    finally:
        shutdown_s = seconds_of(server.shutdown)
    return launch_s, shutdown_s


def test_a_refusal_is_one_warning_and_the_host_works(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def warned() -> bool:
        said.append(capfd.readouterr().err)
        return "HTTP 400" in "".join(said)

    with studio(refusal) as there:
        with RpcAgentServerLauncher(custom_agent_classes=[Worker], studio_url=there.url, server_id="unloved") as server:
            there.posts.get(timeout=10)
            assert eventually(warned, 5)
            with RpcClient(server.host, server.port) as client:
                assert client.create_agent(Worker).echo(1) == 1
        assert there.posts.empty()  # asking again would not change it
    (line,) = "".join([*said, capfd.readouterr().err]).splitlines()
    assert "unloved" in line
    assert there.url in line


def test_a_studio_that_hangs_delays_neither_launch_nor_shutdown() -> None:
    release = threading.Event()

    def hang() -> tuple[int, str, bytes]:
        release.wait(30)
        return ok()

    with studio(hang) as there:
        launch_s, shutdown_s = working_host(lambda: there.posts.get(timeout=10), studio_url=there.url)
        release.set()
    assert launch_s < LAUNCH_S
    assert shutdown_s < 1.5


def test_a_studio_that_is_away_delays_neither_launch_nor_shutdown() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        launch_s, shutdown_s = working_host(list, studio_url=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert launch_s < LAUNCH_S
    assert shutdown_s < 1.5


def test_in_the_calling_process_it_is_registered_and_a_hanging_studio_holds_nothing_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    def hang() -> tuple[int, str, bytes]:
        release.wait(30)
        return ok()

    with studio(hang) as there:
        server = RpcAgentServerLauncher(studio_url=there.url)
        thread = threading.Thread(target=server.launch, kwargs={"in_subprocess": False})
        thread.start()
        assert there.posts.get(timeout=10)[1]["port"] == server.port
        assert seconds_of(server.shutdown) < 1.5
        thread.join(5)
        assert not thread.is_alive()
        release.set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
