"""Control of a host by whoever started it: one short conversation over its Unix socket, then nothing is left.

The launcher's process may fork later, so this keeps no thread and no ZeroMQ context behind, unlike a
`Connection`. Wire: HELLO, then one management CALL, as in `frames`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from .. import codec
from ..errors import HostUnreachable
from ..wire import messages
from ..wire.link import rebuild_error
from ..wire.messages import CLIENT_ID_BYTES, Kind, Op, Reply

__all__ = ["send_stop"]


def send_stop(ipc: str, grace_s: float, *, timeout: float) -> None:
    """Tell the host at the socket path ``ipc`` to drain for ``grace_s`` seconds and end.

    Returns when it has agreed, or says goodbye; raises HostUnreachable if it does neither within ``timeout``
    seconds.
    """
    end = time.monotonic() + timeout
    context: zmq.Context[Any] = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"ipc://{ipc}")
            _stop(dealer, grace_s, end)
    except zmq.ZMQError as exc:  # no descriptors left, say
        raise HostUnreachable(f"no control socket: {exc}") from exc
    finally:
        context.term()


def _stop(dealer: zmq.Socket[bytes], grace_s: float, end: float) -> None:
    hello = codec.pack({"client": os.urandom(CLIENT_ID_BYTES), "versions": [messages.VERSION]})
    dealer.send_multipart([messages.header(Kind.HELLO), hello])
    token = messages.parse_header(_receive(dealer, end)[0]).token
    body = (codec.encode_call((), {}).payload,)
    dealer.send_multipart(messages.call_frames(1, token, "", Op.STOP, body, options={"grace_s": grace_s}))
    answer, said = messages.split_answer(_receive(dealer, end))
    while answer.kind == Kind.PONG:  # the host asks who is still there, when another connection ends
        answer, said = messages.split_answer(_receive(dealer, end))
    if answer.kind == Kind.ERROR:
        raise rebuild_error(Reply(answer.code, said))
    if answer.kind not in (Kind.RESULT, Kind.GOODBYE):
        raise HostUnreachable(f"the host answers on its control socket with a message of kind {answer.kind}")


def _receive(dealer: zmq.Socket[bytes], end: float) -> list[bytes]:
    if not dealer.poll(max(0, int((end - time.monotonic()) * 1000))):
        raise HostUnreachable("the host does not answer on its control socket")
    return dealer.recv_multipart()
