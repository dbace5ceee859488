"""Tell a studio, once, that a server listens: one HTTP request in the background.

::

    POST {studio_url}/api/servers/register      {"server_id": "...", "host": "...", "port": 12345}
    200                                         {"status": "ok"}

Nothing else counts as registered: a web server that knows nothing of the request may well answer
200 with a page of its own. A server works without its studio, so nothing here is fatal, and nobody
waits for it; when all attempts have failed, one warning says why.

Every wait on the network (to connect, TLS, each byte either way) is `_Line._wait`, which ends with
the peer, with the attempt's deadline, or with `Registration.stop`, whichever is first. A
peer that accepts and stays silent, or drips a byte at a time, thus costs one time-out, and a stop
is immediate. Only looking up a name is the system's own wait; it happens in a daemon thread, so it
can hold up neither a stop that has a time-out nor the end of the process.

Proxies of the environment are not used: a studio calls its servers back, so it must be reachable
without one, and many an environment sends even loopback through its proxy.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import io
import json
import logging
import os
import selectors
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from ..errors import ConfigError

__all__ = ["Registration", "StudioUrl", "register_in_background"]

T = TypeVar("T")
REGISTER_PATH = "/api/servers/register"
ANSWER_LIMIT_BYTES = 65_536  # {"status": "ok"} is 16
EXCERPT_CHARS = 80  # of an answer that a warning quotes
BACKOFF_LIMIT_S = 10.0

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Stopped(Exception):
    """`Registration.stop` was called."""


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


class _Line:
    """One connection for `http.client` to speak on; all its waits together end at ``deadline``.

    ``wake`` becoming readable ends them too, with `_Stopped`. ``deadline`` is on `time.monotonic`'s clock.
    """

    def __init__(self, url: StudioUrl, wake: socket.socket, deadline: float) -> None:
        self._deadline = deadline
        self._wake = wake
        self._selector = selectors.DefaultSelector()  # not select(): a host may have more than 1,024 descriptors
        self._selector.register(wake, _READ)
        self._socket: socket.socket | None = None
        try:
            self._socket = self._connect(url)
            if url.scheme == "https":
                self._start_tls(self._socket, url.host)
        except BaseException:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        self._selector.close()
        if self._socket is not None:
            self._socket.close()

    # What http.client asks of a socket.

    def sendall(self, data: bytes) -> None:
        assert self._socket is not None
        rest = memoryview(data)
        while rest:
            rest = rest[self._when_ready(partial(self._socket.send, rest), _WRITE) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_LineReader(self))

    def close(self) -> None:
        """Nothing: http.client "closes" before it reads the answer; `hang_up` is the end."""

    def read_into(self, buffer: memoryview) -> int:
        assert self._socket is not None
        return self._when_ready(partial(self._socket.recv_into, buffer), _READ)

    # Waiting.

    def _connect(self, url: StudioUrl) -> socket.socket:
        """To the first address that answers; each has an equal share of the time that is left."""
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        for tried, (family, kind, protocol, _, address) in enumerate(found, start=1):
            now = time.monotonic()
            share_s = (self._deadline - now) / (len(found) - tried + 1)
            trial = socket.socket(family, kind, protocol)
            try:
                trial.setblocking(False)
                error = trial.connect_ex(address)
                if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                    self._wait(trial, _WRITE, now + share_s)
                    error = trial.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                return trial
            except BaseException as exc:
                trial.close()
                if tried == len(found) or not isinstance(exc, OSError):
                    raise
        raise OSError("its name has no address")

    def _start_tls(self, plain: socket.socket, host: str) -> None:
        context = ssl.create_default_context()
        self._socket = secure = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        self._when_ready(secure.do_handshake, _READ)

    def _when_ready(self, operation: Callable[[], T], event: int) -> T:
        """``operation`` of the non-blocking socket, as soon as it can; TLS says itself what it waits for."""
        while True:
            self._wait(None, event, self._deadline)  # a peer that floods us would never make us wait below
            try:
                return operation()
            except ssl.SSLWantReadError:
                waits_for = _READ
            except ssl.SSLWantWriteError:
                waits_for = _WRITE
            except BlockingIOError:
                waits_for = event
            self._wait(self._socket, waits_for, self._deadline)

    def _wait(self, peer: socket.socket | None, event: int, deadline: float) -> None:
        """Until ``peer`` is ready; None: only see whether it is time to end. Raises `_Stopped`, TimeoutError."""
        rest_s = deadline - time.monotonic()
        if peer is not None:
            self._selector.register(peer, event)
        try:
            ready = [key.fileobj for key, _ in self._selector.select(0 if peer is None else max(0.0, rest_s))]
        finally:
            if peer is not None:
                self._selector.unregister(peer)
        if self._wake in ready:
            raise _Stopped
        if rest_s <= 0 or (peer is not None and not ready):
            raise TimeoutError


class _LineReader(io.RawIOBase):
    def __init__(self, line: _Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.read_into(buffer)


class Registration:
    """One registration under way; made by `register_in_background`. Its methods may be called from any thread."""

    def __init__(
        self, url: str, body: bytes, *, named: str,
        attempts: int, timeout_s: float, backoff_s: float, logger: logging.Logger,
    ) -> None:  # fmt: skip
        self._url = url
        self._body = body
        self._named = named
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._logger = logger
        self._registered = False
        self._lock = threading.Lock()  # guards the two ends of the wake pair against use after close
        self._ended = False
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="zmqagents-studio", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, at most ``timeout`` seconds; True if the studio has registered the server."""
        self._thread.join(timeout)
        return self._registered

    def stop(self, timeout: float | None = 1.0) -> bool:
        """Give up now, without a warning; may be called again. True if the thread has ended in ``timeout`` seconds."""
        with self._lock:
            if not self._ended:
                self._waker.send(b"\0")
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._try_all()
        except _Stopped:
            self._logger.debug("registration with the studio given up: stopping")
        except Exception:  # never fatal, whatever a broken peer or resolver makes Python raise
            self._logger.warning("registration with the studio failed; the server runs on", exc_info=True)
        finally:
            with self._lock:
                self._ended = True
                self._wake.close()
                self._waker.close()

    def _try_all(self) -> None:
        try:
            url = StudioUrl.parse(self._url)
        except ConfigError as exc:
            self._logger.warning("not registered with a studio, the server runs on: %s", exc)
            return
        for attempt in range(1, self._attempts + 1):
            try:
                self._try_once(url)
            except (_Refused, OSError, http.client.HTTPException) as exc:
                reason = _reason(exc, self._timeout_s)
                self._logger.debug("studio %s, attempt %d: %s", url, attempt, reason)
                if attempt == self._attempts or (isinstance(exc, _Refused) and exc.final):
                    self._logger.warning(
                        "studio %s has not registered %s, the server runs on without it: %s (attempts made: %d)",
                        url, self._named, reason, attempt,
                    )  # fmt: skip
                    return
            else:
                self._registered = True
                self._logger.info("studio %s has registered %s", url, self._named)
                return
            self._pause(min(self._backoff_s * 2 ** (attempt - 1), BACKOFF_LIMIT_S))

    def _try_once(self, url: StudioUrl) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if url.authorization is not None:
            headers["Authorization"] = url.authorization
        line = _Line(url, self._wake, time.monotonic() + self._timeout_s)
        with contextlib.closing(http.client.HTTPConnection(url.host, url.port)) as connection:
            try:
                connection.sock = cast(Any, line)
                connection.request("POST", url.path, self._body, headers)
                with connection.getresponse() as response:
                    _check(response, response.read(ANSWER_LIMIT_BYTES + 1))
            finally:
                line.hang_up()

    def _pause(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, _READ)
            if selector.select(seconds):
                raise _Stopped


def register_in_background(
    url: str, *, server_id: str, host: str, port: int,
    attempts: int = 4, timeout_s: float = 3.0, backoff_s: float = 0.5, logger: logging.Logger | None = None,
) -> Registration:  # fmt: skip
    """Start to register ``host:port``, where the server listens by now, with the studio at ``url``.

    Returns at once. At most ``attempts`` requests of ``timeout_s`` seconds each, with a pause of
    ``backoff_s`` after the first, doubling; a refusal (HTTP 4xx, as for an id that is registered
    already) is final. The outcome is logged: INFO when registered, otherwise one WARNING with the
    reason and without credentials. A wrong ``url`` is such a warning, too; to have it as an error
    beforehand, use `StudioUrl.parse`.
    """
    return Registration(
        url,
        json.dumps({"server_id": server_id, "host": host, "port": port}).encode(),
        named=f"{server_id} at {host}:{port}",
        attempts=attempts,
        timeout_s=timeout_s,
        backoff_s=backoff_s,
        logger=logger if logger is not None else logging.getLogger(__name__),
    )


def _check(response: http.client.HTTPResponse, body: bytes) -> None:
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
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({exc.verify_message})"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror[0].lower() + exc.strerror[1:]
    if isinstance(exc, http.client.HTTPException) and not isinstance(exc, OSError):
        return f"its answer is not HTTP ({type(exc).__name__})"
    return str(exc) or type(exc).__name__


def _excerpt(text: str) -> str:
    """The start of what a peer sent, safe to print on one line."""
    start = "".join(sign if sign.isprintable() else "?" for sign in text[:EXCERPT_CHARS])
    return start + "..." if len(text) > EXCERPT_CHARS else start
