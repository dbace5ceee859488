"""Ask a host to stop: one short conversation over its Unix socket, which leaves nothing behind.

The launcher's process may fork later, so this starts no thread and makes no ZeroMQ context, unlike a `Connection`. On
the wire it is HELLO, then one management CALL, as in `wire.messages`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from .. import codec
from ..errors import HostUnreachable
from ..wire import messages
from ..wire.link import rebuild_error
from ..wire.messages import CLIENT_ID_BYTES, Frame, Kind, Op, Reply
from ..wire.transport import poll
from ..wire.unix import UnixTransport

__all__ = ["send_stop"]


def send_stop(ipc: str, grace_s: float, *, timeout: float) -> None:
    """Tell the host at the socket path ``ipc`` to drain for ``grace_s`` seconds and end.

    Returns when the host has agreed, or says goodbye. Raises HostUnreachable if it does neither within ``timeout``
    seconds, or closes the connection, or if this process has no descriptor left.
    """
    end = time.monotonic() + timeout
    try:
        transport = UnixTransport(ipc)
    except OSError as exc:
        raise HostUnreachable(f"no control socket: {exc}") from exc
    try:
        _stop(transport, grace_s, end)
    finally:
        transport.close()


def _stop(transport: UnixTransport, grace_s: float, end: float) -> None:
    hello = codec.pack({"client": os.urandom(CLIENT_ID_BYTES), "versions": [messages.VERSION]})
    transport.send([messages.header(Kind.HELLO), hello])
    token = messages.parse_header(_receive(transport, end)[0]).token
    body = (codec.encode_call((), {}).payload,)
    transport.send(messages.call_frames(1, token, "", Op.STOP, body, options={"grace_s": grace_s}))
    answer, said = messages.split_answer(_receive(transport, end))
    while answer.kind == Kind.PONG:  # the host probes its connections when another one ends
        answer, said = messages.split_answer(_receive(transport, end))
    if answer.kind == Kind.ERROR:
        raise rebuild_error(Reply(answer.code, said))
    if answer.kind not in (Kind.RESULT, Kind.GOODBYE):
        raise HostUnreachable(f"the host answers on its control socket with a message of kind {answer.kind}")


def _receive(transport: UnixTransport, end: float) -> Sequence[Frame]:
    while (message := transport.receive()) is None:
        left_ms = int((end - time.monotonic()) * 1000)
        if transport.ended:
            raise HostUnreachable("the host has closed its control socket")
        if left_ms <= 0:
            raise HostUnreachable("the host does not answer on its control socket")
        transport.look(poll(transport.items, left_ms))
    return message
