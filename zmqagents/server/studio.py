"""Tell a studio, once, that a server listens: one HTTP request in the background.

::

    POST {studio_url}/api/servers/register      {"server_id": "...", "host": "...", "port": 12345}
    200                                         {"status": "ok"}

Any other answer is no registration: a web server that does not know the request may answer 200 with a page of its own.
A server works without its studio, so no failure here is fatal; after the last attempt one warning gives the reason.

A socket's own time-out counts from byte to byte, so a timer cuts the connection when an attempt has had its time, and a
stop cuts it as well. Neither can end the look-up of a name, the connecting or a TLS handshake. A stop then leaves the
thread behind: it is a daemon, and ends with its time-out or with the process.

`http.client` uses no proxy of the environment: a studio calls its servers back, so the two must reach each other.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

__all__ = ["Registration", "StudioUrl"]

log = logging.getLogger(__name__)

REGISTER_PATH = "/api/servers/register"
ANSWER_LIMIT_BYTES = 65_536  # {"status": "ok"} has 16
EXCERPT_CHARS = 80  # of an answer that a warning quotes
BACKOFF_LIMIT_S = 10.0


class _Refused(Exception):
    """An answer that is no registration; ``final``: asking again would not change it."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class StudioUrl:
    """Where a studio is; ``str()`` and ``repr()`` of it have no credentials and may be logged."""

    scheme: str
    host: str
    port: int
    path: str  # percent-encoded, without a "/" at its end
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> StudioUrl:
        """``http://host:port`` with an optional path, or https; ``user:password@`` becomes HTTP basic authentication.

        Raises `ConfigError`, without the URL in its text if that may hold a secret.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, TypeError, AttributeError):  # the port, brackets, not text
            parts, host, port = urllib.parse.SplitResult("", "", "", "", ""), None, None
        if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
            shown = "" if any(sign in str(url) for sign in "@?#") else f", not {url!r}"
            raise ConfigError(f"studio_url must be like http://host:port, or https, without ? and #{shown}")
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if parts.username is not None:
            pair = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        return cls(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, headers)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class Registration:
    """Registers ``host:port``, where the server listens by now, with the studio at ``url``, in a thread of its own.

    At most ``attempts`` requests of ``timeout_s`` seconds each, with a pause of ``backoff_s`` seconds after the first,
    doubling; a refusal (HTTP 4xx, as for an id that is registered already) is final. The outcome is logged: INFO when
    registered, otherwise one WARNING with the reason and without credentials. A wrong ``url`` is such a warning, too;
    to have it as an error beforehand, use `StudioUrl.parse`. Any thread may call the methods.
    """

    def __init__(
        self, url: str, *, server_id: str, host: str, port: int,
        attempts: int = 4, timeout_s: float = 3.0, backoff_s: float = 0.5,
    ) -> None:  # fmt: skip
        self._url = url
        self._body = json.dumps({"server_id": server_id, "host": host, "port": port}).encode()
        self._named = f"{server_id} at {host}:{port}"
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._registered = False
        self._stopping = threading.Event()
        self._connecting = False
        self._socket: socket.socket | None = None  # of the attempt that is under way
        self._thread = threading.Thread(target=self._run, name="zmqagents-studio", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the last attempt is over, at most ``timeout`` seconds; True if the server is registered."""
        self._thread.join(timeout)
        return self._registered

    def stop(self, timeout: float = 1.0) -> bool:
        """Give up now, without a warning; may be called again. True if the thread has ended in ``timeout`` seconds."""
        self._stopping.set()
        if not self._connecting:  # else the thread is left behind
            _cut(self._socket)
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            url = StudioUrl.parse(self._url)
        except ConfigError as exc:
            log.warning("not registered with a studio, the server runs on: %s", exc)
            return
        for number in range(1, self._attempts + 1):
            if self._try(url, number) or self._stopping.wait(min(self._backoff_s * 2 ** (number - 1), BACKOFF_LIMIT_S)):
                return

    def _try(self, url: StudioUrl, number: int) -> bool:
        """Make one attempt; True if no further one is needed."""
        end = time.monotonic() + self._timeout_s
        try:
            self._ask(url, end)
        except Exception as exc:  # never fatal, whatever a broken peer or resolver makes Python raise
            if self._stopping.is_set():
                return True
            reason = _reason(exc)
            if time.monotonic() >= end or isinstance(exc, TimeoutError):
                reason = f"no complete answer within {self._timeout_s:g} s"
            log.debug("studio %s, attempt %d: %s", url, number, reason)
            if number < self._attempts and not (isinstance(exc, _Refused) and exc.final):
                return False
            text = "studio %s has not registered %s, the server runs on without it: %s (attempts made: %d)"
            log.warning(text, url, self._named, reason, number)
        else:
            self._registered = True
            log.info("studio %s has registered %s", url, self._named)
        return True

    def _ask(self, url: StudioUrl, end: float) -> None:
        """Make one request. Raises _Refused, OSError, http.client.HTTPException; anything if it is cut."""
        import http.client  # here, with the modules for e-mail that it loads, so that no start waits for them

        make = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = make(url.host, url.port, timeout=self._timeout_s)
        self._connecting = True
        try:
            connection.connect()
            self._socket = connection.sock
        finally:
            self._connecting = False
        timer = threading.Timer(end - time.monotonic(), _cut, [connection.sock])
        timer.start()
        try:
            if self._stopping.is_set():  # since the thread began to connect
                raise TimeoutError
            connection.request("POST", url.path + REGISTER_PATH, self._body, url.headers)
            with connection.getresponse() as response:
                _check(response, response.read(ANSWER_LIMIT_BYTES + 1))
        finally:
            timer.cancel()
            timer.join()
            self._socket = None
            connection.close()


def _cut(connected: socket.socket | None) -> None:
    """End a connection under the thread that reads from it."""
    if connected is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            socket.socket.shutdown(connected, socket.SHUT_RD)  # that of an SSLSocket is not for another thread


def _check(response: Any, body: bytes) -> None:
    """Raise `_Refused` unless the answer is a registration."""
    if response.status != 200:
        # 408 and 429 are 4xx that mean "later".
        final = 400 <= response.status < 500 and response.status not in (408, 429)
        raise _Refused(f"it answered HTTP {response.status} {_excerpt(response.reason)}".rstrip(), final=final)
    if len(body) > ANSWER_LIMIT_BYTES:
        raise _Refused(f"its answer is larger than {ANSWER_LIMIT_BYTES:,} bytes; is it a studio?")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):  # no UTF-8 is a ValueError too; [[[[... is the other
        kind = _excerpt(response.getheader("Content-Type", "no content type"))
        raise _Refused(f"its answer is not JSON ({kind}); is it a studio?") from None
    if not isinstance(answer, dict) or answer.get("status") != "ok":
        raise _Refused(f"its answer is {_excerpt(json.dumps(answer))} and not a status of ok")


def _reason(exc: Exception) -> str:
    if message := getattr(exc, "verify_message", ""):  # of ssl.SSLCertVerificationError
        return f"its certificate is not trusted ({message})"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror[0].lower() + exc.strerror[1:]
    if isinstance(exc, (OSError, _Refused)):
        return str(exc) or type(exc).__name__
    return f"its answer is not HTTP ({type(exc).__name__})"


def _excerpt(text: str) -> str:
    """The start of what a peer sent, safe to print on one line."""
    start = "".join(sign if sign.isprintable() else "?" for sign in text[:EXCERPT_CHARS])
    return start + "..." if len(text) > EXCERPT_CHARS else start
