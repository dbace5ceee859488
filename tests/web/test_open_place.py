"""The page for others than this machine: by TLS or behind a proxy, under names that were given, with a token."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import environment, free_port
from zmqagents.web.serve import Place

LIMIT_S = 30.0
NAME = "agents.example"


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (Place("0.0.0.0", 80), "by TLS alone"),
        (Place("0.0.0.0", 80, (NAME,)), "by TLS alone"),
        (Place("10.0.0.5", 80, (), "cert.pem"), "go together"),
        (Place("10.0.0.5", 80, (), None, "key.pem"), "by TLS alone"),
        (Place("127.0.0.1", 80, (NAME,)), "this machine alone"),
        (Place("::", 80, (), "cert.pem", "key.pem"), "under which name"),
        (Place("127.0.0.1", 80, (), behind_proxy=True), "under which name"),
        (Place("0.0.0.0", 80, ("https://agents.example",), behind_proxy=True), "a name alone"),
        (Place("0.0.0.0", 80, ("a.example:80",), behind_proxy=True), "a name alone"),
        (Place("0.0.0.0", 80, ("",), behind_proxy=True), "a name alone"),
    ],
)  # fmt: skip
def test_what_would_be_unsafe_or_of_no_use_is_told(place: Place, part: str) -> None:
    assert part in place.mistake


@pytest.mark.parametrize(
    ("place", "names", "url"),
    [
        (Place("127.0.0.1", 0), (), "http://127.0.0.1:5"),
        (Place("::1", 0), (), "http://[::1]:5"),
        (Place("10.0.0.5", 0, (), "c", "k"), ("10.0.0.5",), "https://10.0.0.5:5"),
        (Place("fd00::5", 0, (), "c", "k"), ("[fd00::5]",), "https://[fd00::5]:5"),
        (Place("0.0.0.0", 0, ("A.example", "b.example"), "c", "k"), ("a.example", "b.example"), "https://a.example:5"),
        (Place("127.0.0.1", 0, (NAME,), behind_proxy=True), (NAME,), f"https://{NAME}"),
    ],
)  # fmt: skip
def test_a_place_has_the_names_that_were_given_and_its_own_address(
    place: Place, names: tuple[str, ...], url: str
) -> None:
    assert place.mistake == ""
    assert place.own_names == names
    assert place.url(5) == url


class Web:
    """A web process that others may ask, and requests to it as they come from a proxy."""

    def __init__(self, told: dict[str, str], port: int, context: ssl.SSLContext | None) -> None:
        self.url, self.port = told["url"], port
        self.token = told["web"].rpartition("#token=")[2]
        self._context = context

    def ask(self, path: str, *, host: str = NAME, body: Any = None, **headers: str) -> tuple[int, Any, str]:
        """Status, cookie and text."""
        if self._context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=LIMIT_S, context=self._context)
        try:
            headers = {"Host": host, **headers}
            text = None if body is None else json.dumps(body)
            headers |= {} if text is None else {"Content-Type": "application/json"}
            connection.request("GET" if text is None else "POST", path, text, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("set-cookie", ""), answer.read().decode()
        finally:
            connection.close()

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@contextlib.contextmanager
def web(*words: str, context: ssl.SSLContext | None = None) -> Iterator[Web]:
    """Nobody is at the port of its host."""
    port = free_port()
    command = [sys.executable, "-m", "zmqagents", "web", "--json", "--port", str(free_port()), "--host-name", NAME]
    command += ["--listen", f"127.0.0.1:{port}" if context is None else f"0.0.0.0:{port}", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            yield Web(json.loads(process.stdout.readline()), port, context)
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_S)
        finally:
            process.kill()


def check_that_strangers_see_nothing(web: Web) -> None:
    assert web.ask("/metrics")[0] == 401
    assert web.ask("/metrics", Authorization="Bearer wrong")[0] == 401
    assert web.ask("/metrics", **web.bearer())[0] == 200
    assert web.ask("/api/me")[0] == 401
    status, _, text = web.ask("/readyz")
    assert (status, text) == (503, "no\n"), "nor why the host does not answer"
    assert "HostUnreachable" in web.ask("/readyz", **web.bearer())[2]
    assert web.ask("/")[0] == 200, "an empty shell"
    for name in ("evil.example", f"{NAME}.evil.example", "", "10.0.0.5"):
        assert web.ask("/metrics", host=name, **web.bearer())[0] == 400, name
    assert web.ask("/livez", host="127.0.0.1")[0] == 503, "a probe of this machine"


@pytest.mark.program
def test_behind_a_proxy_a_stranger_sees_nothing_and_cookies_go_by_tls_alone() -> None:
    with web("--behind-proxy") as opened:
        assert opened.url == f"https://{NAME}"
        check_that_strangers_see_nothing(opened)
        status, cookie, _ = opened.ask("/api/session", body={"token": opened.token}, Origin=f"https://{NAME}")
        assert status == 200
        assert cookie.startswith("__Host-za_session_")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        (name, _, _) = cookie.partition(";")
        assert opened.ask("/api/me", Cookie=name)[0] == 200
        evil = opened.ask("/api/session", body={"token": opened.token}, Origin="https://evil.example")
        assert evil[0] == 403


@pytest.mark.program
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_with_a_certificate_it_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(certificate))
    with web("--certificate", str(certificate), "--certificate-key", str(key), context=context) as opened:
        assert opened.url == f"https://{NAME}:{opened.port}"
        check_that_strangers_see_nothing(opened)
        with pytest.raises((http.client.HTTPException, OSError)):
            Web({"url": "", "web": ""}, opened.port, None).ask("/livez")


@pytest.mark.program
def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    command = [sys.executable, "-m", "zmqagents", "web", "--port", "1", "--listen", "0.0.0.0:0", "--host-name", NAME]
    command += ["--certificate", str(nothing), "--certificate-key", str(nothing)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment())
    assert done.returncode != 0
    assert str(nothing) in done.stderr
    assert done.stderr.count("\n") == 1
