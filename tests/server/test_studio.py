"""Registration with a studio, against real HTTP servers on loopback that answer, refuse, hang, drip and are away."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from zmqagents.errors import ConfigError
from zmqagents.server.studio import Registration, StudioUrl

OK = b'{"status":"ok"}'
PROMPT_S = 1.0  # generous for two shared cores; the waits that it is told from are longer

# For localhost and 127.0.0.1, valid until 2126, of no worth elsewhere.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglKEbSnoP/qQVe7T/
ilmRVPqIgszK8myzKMWlTypRuCehRANCAAQq7naEfCIGKBcFBAtaZmFDOOLjnUx1
G/9qmdMP+GYIay2zeJuWBElAwzjKxZWSWMuGx9Aax3bqxDVLsxSTit0g
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUfWj+lVMFnvvaQZDH3vYoaZSmVRcwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjEyNTAyOFoYDzIxMjYxMDI5
MTI1MDI4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQq7naEfCIGKBcFBAtaZmFDOOLjnUx1G/9qmdMP+GYIay2zeJuWBElA
wzjKxZWSWMuGx9Aax3bqxDVLsxSTit0go28wbTAdBgNVHQ4EFgQU6WfdAAtJT50z
pyhwp1B+KCLG1vcwHwYDVR0jBBgwFoAU6WfdAAtJT50zpyhwp1B+KCLG1vcwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgDHkDarTsej64nDRDx3HvTY9bPoisJnvgWgvA8XvqwcsCIQDU
AUz+Ddfj72JS4fS6oEznuALw7Qh/JbV8ANMAuXO1lw==
-----END CERTIFICATE-----
"""


class Handler(BaseHTTPRequestHandler):
    """Hands a POST to the studio's ``behave``."""

    server: LocalStudio

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.server.requests.append((self.path, dict(self.headers), json.loads(self.rfile.read(length))))
        # The client may give up and close at any time.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.behave(self)

    def respond(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LocalStudio(ThreadingHTTPServer):
    """A web server on loopback; ``released`` is set when the test is over, for behaviours that hang."""

    daemon_threads = False  # so that server_close waits for them

    def __init__(self, behave: Callable[[Handler], None], *, listening: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.behave = behave
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.released = threading.Event()
        self.thread: threading.Thread | None = None
        self.server_bind()
        if listening:
            self.appear()

    def appear(self) -> None:
        """Until now the port was taken but closed: a connection to it was refused."""
        self.server_activate()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.released.set()
        if self.thread is not None:
            self.shutdown()
            self.thread.join()
        self.server_close()


@pytest.fixture
def studio() -> Iterator[Callable[..., LocalStudio]]:
    opened: list[LocalStudio] = []

    def open_studio(behave: Callable[[Handler], None], **options: Any) -> LocalStudio:
        opened.append(LocalStudio(behave, **options))
        return opened[-1]

    yield open_studio
    for made in opened:
        made.close()


@pytest.fixture
def register(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Registration]]:
    """A `Registration` in a hurry; whatever is still under way at the end is stopped."""
    caplog.set_level(logging.DEBUG, "zmqagents.server.studio")
    made: list[Registration] = []

    def register_with(url: str, **given: Any) -> Registration:
        options: Any = {"server_id": "srv-1", "host": "agents.example", "port": 4711, "backoff_s": 0.01} | given
        made.append(Registration(url, **options))
        return made[-1]

    yield register_with
    for registration in made:
        assert registration.stop(10)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    (text,) = warnings_of(caplog)
    return text


# ---------------------------------------------------------------- it answers


def test_a_server_is_registered_with_its_id_host_and_real_port(studio: Any, register: Any, caplog: Any) -> None:
    there = studio(lambda handler: handler.respond(200, OK))
    registration = register(there.url)
    assert registration.wait(10) is True
    ((path, headers, body),) = there.requests
    assert path == "/api/servers/register"
    assert headers["Content-Type"] == "application/json"
    assert body == {"server_id": "srv-1", "host": "agents.example", "port": 4711}
    assert warnings_of(caplog) == []
    assert registration.stop() is True, "stop after the end is fine"
    assert registration.wait(0) is True


@pytest.mark.parametrize(("suffix", "path"), [("/", ""), ("/base/", "/base"), ("/a b/ü", "/a%20b/%C3%BC")])
def test_a_studio_may_live_below_a_path(studio: Any, register: Any, suffix: str, path: str) -> None:
    there = studio(lambda handler: handler.respond(200, OK))
    assert register(there.url + suffix).wait(10)
    assert there.requests[0][0] == f"{path}/api/servers/register"


def test_an_answer_in_chunks_and_with_more_fields_counts(studio: Any, register: Any) -> None:
    def in_chunks(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b'{"more": [1],', b' "status": "ok"}', b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    assert register(studio(in_chunks).url).wait(10)


def test_credentials_of_the_url_are_sent_and_never_logged(studio: Any, register: Any, caplog: Any) -> None:
    there = studio(lambda handler: handler.respond(200, b"{}"))
    assert register(there.url.replace("//", "//ann:s%40cret@"), attempts=2).wait(10) is False
    token = there.requests[0][1]["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(token) == b"ann:s@cret"
    assert f"studio {there.url} " in the_warning(caplog)
    for secret in ("ann", "cret", token):
        assert secret not in caplog.text


def test_a_proxy_of_the_environment_is_not_asked(
    studio: Any, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    there = studio(lambda handler: handler.respond(200, OK))
    proxy = studio(lambda handler: handler.respond(502, b"proxy"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert register(there.url).wait(10)
    assert proxy.requests == []


# ---------------------------------------------------------------- it answers something else


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"<!doctype html><title>Studio</title>", "text/html", "not JSON (text/html)"),
        (b"<!doctype html>", "application/json", "not JSON (application/json)"),
        (b"", "application/json", "not JSON"),
        (b"\xff\xfe", "application/json", "not JSON"),
        (b"[" * 60_000, "application/json", "not JSON"),
        (b'{"status":"fail"}', "application/json", '{"status": "fail"} and not a status of ok'),
        (b'{"status":["ok"]}', "application/json", "not a status of ok"),
        (b'"ok"', "application/json", '"ok" and not a status of ok'),
        (b"null", "application/json", "null and not a status of ok"),
        (b'{"status":"' + b"x" * 500 + b'"}', "application/json", "xxx... and not a status of ok"),
        (OK + b" " * 70_000, "application/json", "larger than 65,536 bytes"),
    ],
)
def test_a_200_that_is_no_json_with_status_ok_is_no_registration(
    studio: Any, register: Any, caplog: Any, body: bytes, content_type: str, reason: str
) -> None:
    there = studio(lambda handler: handler.respond(200, body, content_type))
    assert register(there.url, attempts=2).wait(10) is False
    assert len(there.requests) == 2
    text = the_warning(caplog)
    assert reason in text
    assert text.startswith(f"studio {there.url} has not registered srv-1 at agents.example:4711")
    assert "attempts made: 2" in text


def test_a_duplicate_id_is_refused_once_and_not_asked_again(studio: Any, register: Any, caplog: Any) -> None:
    there = studio(lambda handler: handler.respond(400, b"<h1>Bad Request</h1>", "text/html"))
    assert register(there.url).wait(10) is False
    assert len(there.requests) == 1
    assert "it answered HTTP 400 Bad Request" in the_warning(caplog)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_studio_in_trouble_is_asked_again(studio: Any, register: Any, caplog: Any, status: int) -> None:
    answers = iter([(status, b"<html>"), (status, b"<html>"), (200, OK)])
    there = studio(lambda handler: handler.respond(*next(answers)))
    assert register(there.url).wait(10) is True
    assert len(there.requests) == 3
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("status", [201, 204, 301, 307])
def test_neither_another_success_nor_a_redirection_is_a_registration(
    studio: Any, register: Any, caplog: Any, status: int
) -> None:
    elsewhere = studio(lambda handler: handler.respond(200, OK))
    there = studio(lambda handler: handler.respond(status, OK if status == 201 else b"", Location=elsewhere.url))
    assert register(there.url, attempts=1).wait(10) is False
    assert elsewhere.requests == []
    assert f"HTTP {status}" in the_warning(caplog)


@pytest.mark.parametrize(
    "junk",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\xff" * 40 + b"\r\n",
        b"HTTP/1.1 2oo OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status"',
        b"",
    ],
)
def test_a_peer_that_speaks_no_http_is_one_warning(studio: Any, register: Any, caplog: Any, junk: bytes) -> None:
    there = studio(lambda handler: handler.wfile.write(junk))
    assert register(there.url, attempts=2).wait(10) is False
    text = the_warning(caplog)
    assert "runs on" in text
    assert text.isprintable()
    assert "Traceback" not in caplog.text


# ---------------------------------------------------------------- it hangs, drips, floods


def accept_and_be_silent(handler: Handler) -> None:
    handler.server.released.wait()


def drip_the_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b".")


def drip_the_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b" ")


def continue_for_ever(handler: Handler) -> None:
    while not handler.server.released.is_set():
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def send_without_end(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    while not handler.server.released.is_set():
        handler.wfile.write(b" " * 65_536)


SLOW = [accept_and_be_silent, drip_the_head, drip_the_body, continue_for_ever]


@pytest.mark.parametrize("behave", SLOW)
def test_a_studio_that_never_ends_its_answer_costs_the_time_out_and_no_more(
    studio: Any, register: Any, caplog: Any, behave: Callable[[Handler], None]
) -> None:
    there = studio(behave)
    start = time.monotonic()
    assert register(there.url, attempts=2, timeout_s=0.3).wait(10) is False
    assert 0.6 <= time.monotonic() - start < 0.6 + PROMPT_S
    assert len(there.requests) == 2
    assert "no complete answer within 0.3 s" in the_warning(caplog)


@pytest.mark.parametrize("behave", SLOW)
def test_a_stop_is_immediate_and_silent_whatever_the_studio_does(
    studio: Any, register: Any, caplog: Any, behave: Callable[[Handler], None]
) -> None:
    arrived = threading.Event()

    def arrive(handler: Handler) -> None:
        arrived.set()
        behave(handler)

    registration = register(studio(arrive).url, timeout_s=60)
    assert arrived.wait(10)
    start = time.monotonic()
    assert registration.stop(10) is True
    assert time.monotonic() - start < PROMPT_S
    assert registration.stop(0) is True
    assert registration.wait(0) is False
    assert warnings_of(caplog) == []


def test_an_answer_without_end_is_read_up_to_a_bound(studio: Any, register: Any, caplog: Any) -> None:
    start = time.monotonic()
    assert register(studio(send_without_end).url, attempts=2, timeout_s=30).wait(10) is False
    assert time.monotonic() - start < PROMPT_S
    assert "larger than 65,536 bytes" in the_warning(caplog)


@pytest.mark.parametrize(("timeout_s", "stopped"), [(0.3, False), (60, True)])
def test_data_that_never_run_out_cannot_keep_an_attempt_past_its_end(
    studio: Any, register: Any, timeout_s: float, stopped: bool
) -> None:
    """No wait for the peer is needed, so that no time-out of the socket ever comes."""
    flooding = threading.Event()

    def flood(handler: Handler) -> None:
        while not handler.server.released.is_set():
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)
            flooding.set()

    registration = register(studio(flood).url, attempts=1, timeout_s=timeout_s)
    assert flooding.wait(10)
    start = time.monotonic()
    assert (registration.stop(10) if stopped else registration.wait(10) is False) is True
    assert time.monotonic() - start < PROMPT_S + (0 if stopped else timeout_s)


def test_a_studio_that_listens_but_never_accepts_is_a_time_out(register: Any, caplog: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # With the backlog full, the kernel does not even finish connecting.
        filling = [socket.socket() for _ in range(4)]
        try:
            for one in filling:
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
            start = time.monotonic()
            assert register(url, attempts=2, timeout_s=0.3).wait(10) is False
            assert time.monotonic() - start < 0.6 + PROMPT_S
            assert "no complete answer within 0.3 s" in the_warning(caplog)

            stopped = register(url, timeout_s=1.5)
            start = time.monotonic()
            stopped.stop(10)  # the thread may be left behind until its time-out
            assert time.monotonic() - start < PROMPT_S
            assert stopped.wait(10) is False
            assert len(warnings_of(caplog)) == 1, "of the first registration"
        finally:
            for one in filling:
                one.close()


# ---------------------------------------------------------------- it is away


class Noticed(logging.Handler):
    """Sets an event when the first attempt has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "attempt 1" in record.getMessage():
            self.event.set()


@pytest.fixture
def first_failure() -> Iterator[threading.Event]:
    noticed = Noticed()
    logger = logging.getLogger("zmqagents.server.studio")
    logger.addHandler(noticed)
    yield noticed.event
    logger.removeHandler(noticed)


def test_a_studio_that_is_away_is_one_warning(studio: Any, register: Any, caplog: Any) -> None:
    away = studio(lambda handler: handler.respond(200, OK), listening=False)
    assert register(away.url).wait(10) is False
    text = the_warning(caplog)
    assert text == (
        f"studio {away.url} has not registered srv-1 at agents.example:4711, the server runs on without it: "
        "connection refused (attempts made: 4)"
    )


def test_a_studio_that_appears_later_is_found(
    studio: Any, register: Any, caplog: Any, first_failure: threading.Event
) -> None:
    away = studio(lambda handler: handler.respond(200, OK), listening=False)
    registration = register(away.url, backoff_s=0.2)
    assert first_failure.wait(10)
    away.appear()
    assert registration.wait(10) is True
    assert len(away.requests) == 1
    assert warnings_of(caplog) == []


def test_pauses_double_from_attempt_to_attempt(studio: Any, register: Any, caplog: Any) -> None:
    away = studio(lambda handler: None, listening=False)
    assert register(away.url, backoff_s=0.1).wait(10) is False
    tried_at = [record.created for record in caplog.records if record.levelno == logging.DEBUG]
    pauses = [after - before for before, after in itertools.pairwise(tried_at)]
    # Records bear the wall clock, which may be slewed meanwhile.
    assert [0.9 * least <= pause for least, pause in zip((0.1, 0.2, 0.4), pauses, strict=True)] == [True] * 3


def test_a_stop_ends_the_pause_between_two_attempts(
    studio: Any, register: Any, caplog: Any, first_failure: threading.Event
) -> None:
    away = studio(lambda handler: handler.respond(200, OK), listening=False)
    registration = register(away.url, backoff_s=60)
    assert first_failure.wait(10)
    start = time.monotonic()
    assert registration.stop(10) is True
    assert time.monotonic() - start < PROMPT_S
    assert warnings_of(caplog) == []


def test_a_name_that_cannot_be_resolved_is_one_warning(register: Any, caplog: Any) -> None:
    """No interface is called so; unlike a host name, that is found out without a name server."""
    assert register("http://[fe80::1%no-such]:5000", attempts=1).wait(10) is False
    assert "studio http://[fe80::1%no-such]:5000 has not registered" in the_warning(caplog)


# ---------------------------------------------------------------- https


@pytest.fixture
def secure_studio(studio: Any, tmp_path: Path) -> tuple[LocalStudio, Path]:
    """Speaks TLS with `CERTIFICATE`; and the file that holds it."""
    pem = tmp_path / "studio.pem"
    pem.write_text(CERTIFICATE)
    there: LocalStudio = studio(lambda handler: handler.respond(200, OK), listening=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    there.socket = context.wrap_socket(there.socket, server_side=True)
    there.appear()
    return there, pem


def test_a_studio_with_a_trusted_certificate_registers_over_tls(
    secure_studio: tuple[LocalStudio, Path], register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, pem = secure_studio
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert register(there.url.replace("http:", "https:")).wait(10) is True
    assert there.requests[0][2]["port"] == 4711


def test_a_studio_with_an_unknown_certificate_is_told_nothing(
    secure_studio: tuple[LocalStudio, Path], register: Any, caplog: Any
) -> None:
    there, _ = secure_studio
    assert register(there.url.replace("http:", "https:"), attempts=1).wait(10) is False
    assert there.requests == []
    assert "its certificate is not trusted" in the_warning(caplog)


def test_a_silent_peer_cannot_hang_the_tls_handshake(register: Any, caplog: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert register(url, attempts=1, timeout_s=0.3).wait(10) is False
        assert time.monotonic() - start < 0.3 + PROMPT_S
    assert "no complete answer" in the_warning(caplog)


# ---------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:5000",
        "localhost",
        "ftp://localhost:21",
        "http://",
        "http://:5000",
        "http://localhost:0",
        "http://localhost:99999",
        "http://localhost:http",
        "http://[::1",
        "http://localhost:5000/?next=1",
        "http://localhost:5000/#top",
    ],
)
def test_a_wrong_url_is_an_error_when_parsed_and_a_warning_in_the_background(
    register: Any, caplog: Any, url: str
) -> None:
    with pytest.raises(ConfigError, match="studio_url must be like http://host:port"):
        StudioUrl.parse(url)
    assert register(url).wait(10) is False
    assert "studio_url must be like" in the_warning(caplog)


@pytest.mark.parametrize("url", ["ann:secret@localhost", "http://ann:sec/ret@host", "http://h/?token=secret@x"])
def test_a_wrong_url_that_may_hold_a_secret_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StudioUrl.parse(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "host", "port", "shown"),
    [
        ("http://localhost", "localhost", 80, "http://localhost:80"),
        ("https://ann:pw@studio.example/x/", "studio.example", 443, "https://studio.example:443/x"),
        ("http://[::1]:5000", "::1", 5000, "http://[::1]:5000"),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, shown: str) -> None:
    parsed = StudioUrl.parse(url)
    assert (parsed.host, parsed.port, str(parsed)) == (host, port, shown)
    assert "pw" not in repr(parsed)
