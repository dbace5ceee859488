"""Tell a studio, once, that a server listens: one HTTP request in the background.

::

    POST {studio_url}/api/servers/register      {"server_id": "...", "host": "...", "port": 12345}
    200                                         {"status": "ok"}

Any other answer is no registration: a web server that does not know the request may answer 200 with a page of its own.
A server works without its studio, so no failure here is fatal; after the last attempt one warning gives the reason.

A peer that accepts and stays silent, or sends a byte now and then, must not hold up an attempt beyond its time-out, nor
the end of the host at all. The socket's own time-out counts from byte to byte, so `_Wire` looks at the clock, and for a
stop, between short waits. Only the look-up of a name cannot be ended; it happens in a daemon thread, which holds up
neither a stop that has a time-out nor the end of the process.

Proxies of the environment are not used: a studio calls its servers back, so the two must reach each other directly.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import logging
import os
import select
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

__all__ = ["Registration", "StudioUrl"]

log = logging.getLogger(__name__)

REGISTER_PATH = "/api/servers/register"
ANSWER_LIMIT_BYTES = 65_536  # {"status": "ok"} has 16
EXCERPT_CHARS = 80  # of an answer that a warning quotes
BACKOFF_LIMIT_S = 10.0
TICK_S = 0.05  # how long a stop may go unnoticed


class _Refused(Exception):
    """An answer that is no registration; ``final``: asking again would not change it."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class StudioUrl:
    """Where a studio is; ``str()`` of it has no credentials and may be logged."""

    scheme: str
    host: str
    port: int
    path: str  # of the registration, percent-encoded
    authorization: str | None  # value of the header of that name

    @classmethod
    def parse(cls, url: str) -> StudioUrl:
        """``http://host:port`` with an optional path, or https; ``user:password@`` becomes HTTP basic authentication.

        Raises `ConfigError`, without the URL in its text if that may hold a secret.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
            host = host and (host if ":" in host else host.encode("idna").decode("ascii"))
        except (ValueError, TypeError, AttributeError):  # the port, brackets, not text, no valid name
            parts, host, port = urllib.parse.SplitResult("", "", "", "", ""), None, None
        if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
            shown = "" if any(sign in str(url) for sign in "@?#") else f", not {url!r}"
            raise ConfigError(f"studio_url must be like http://host:port, or https, without ? and #{shown}")
        path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~") + REGISTER_PATH
        authorization = None
        if parts.username is not None:
            pair = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return cls(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, authorization)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path.removesuffix(REGISTER_PATH)}"

    def __repr__(self) -> str:
        return f"StudioUrl({str(self)!r})"


class _Wire(io.RawIOBase):
    """One connection to a studio, in place of `http.client`'s own socket: each wait ends at ``end`` or at a stop.

    ``end`` is a moment of the monotonic clock. The socket's waits last `TICK_S`; between two of them is a look at both.
    """

    def __init__(self, url: StudioUrl, end: float, stopping: threading.Event) -> None:
        self._end = end
        self._stopping = stopping
        self._socket = self._connect(url)
        try:
            self._socket.settimeout(TICK_S)
            if url.scheme == "https":
                self._start_tls(url.host)
        except BaseException:
            self._socket.close()
            raise

    def _check(self) -> None:
        if self._stopping.is_set() or time.monotonic() >= self._end:
            raise TimeoutError

    def _connect(self, url: StudioUrl) -> socket.socket:
        """Connect to the first address that answers; each has an equal share of the time that is left."""
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        error = 0
        for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
            now = time.monotonic()
            until = now + (self._end - now) / left
            trial = socket.socket(family, kind, protocol)
            trial.setblocking(False)
            error = trial.connect_ex(address)
            while error == errno.EINPROGRESS and time.monotonic() < until and not self._stopping.is_set():
                if _writable(trial):
                    error = trial.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not error:
                return trial
            trial.close()
        self._check()
        raise OSError(error, os.strerror(error))

    def _start_tls(self, host: str) -> None:
        import ssl  # takes 10 ms

        context = ssl.create_default_context()
        secure = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._socket = secure
        while True:
            self._check()
            with contextlib.suppress(TimeoutError):
                return secure.do_handshake()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._check()
            with contextlib.suppress(TimeoutError):
                return self._socket.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)  # some 300 bytes, for which a new socket has room

    def close(self) -> None:
        """Do nothing: `http.client` closes the connection before it reads the answer. See `end`."""

    def end(self) -> None:
        self._socket.close()


def _writable(trial: socket.socket) -> bool:
    poll = select.poll()  # select.select ends at descriptor 1,024
    poll.register(trial, select.POLLOUT)
    return bool(poll.poll(TICK_S * 1000))


def _ask(url: StudioUrl, body: bytes, end: float, stopping: threading.Event) -> None:
    """Make one request. Raises _Refused, TimeoutError at ``end`` and at a stop, OSError, http.client.HTTPException."""
    import http.client  # here, with the modules for e-mail that it loads, so that no start waits for them

    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if url.authorization is not None:
        headers["Authorization"] = url.authorization
    connection = http.client.HTTPConnection(url.host, url.port)
    wire: Any = _Wire(url, end, stopping)
    connection.sock = wire
    try:
        connection.request("POST", url.path, body, headers)
        with connection.getresponse() as response:
            _check(response, response.read(ANSWER_LIMIT_BYTES + 1))
    finally:
        wire.end()


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
        self._thread = threading.Thread(target=self._run, name="zmqagents-studio", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, at most ``timeout`` seconds; True if the studio has registered the server."""
        self._thread.join(timeout)
        return self._registered

    def stop(self, timeout: float = 1.0) -> bool:
        """Give up now, without a warning; may be called again. True if the thread has ended in ``timeout`` seconds."""
        self._stopping.set()
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
        """True if this was the last attempt."""
        try:
            _ask(url, self._body, time.monotonic() + self._timeout_s, self._stopping)
        except Exception as exc:  # never fatal, whatever a broken peer or resolver makes Python raise
            if self._stopping.is_set():
                log.debug("registration with the studio given up: stopping")
                return True
            reason = _reason(exc, self._timeout_s)
            log.debug("studio %s, attempt %d: %s", url, number, reason)
            if number < self._attempts and not (isinstance(exc, _Refused) and exc.final):
                return False
            log.warning(
                "studio %s has not registered %s, the server runs on without it: %s (attempts made: %d)",
                url, self._named, reason, number,
            )  # fmt: skip
        else:
            self._registered = True
            log.info("studio %s has registered %s", url, self._named)
        return True


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


def _reason(exc: Exception, timeout_s: float) -> str:
    if isinstance(exc, TimeoutError):
        return f"no complete answer within {timeout_s:g} s"
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
