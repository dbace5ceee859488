"""The link to the host of a reference: the host's own link if it lives in this process, else a connection.

A result may be asked for before the call that makes it has reached its host, because the two travel over different
connections. So `fetch_far` asks again for a while when the host does not know the task.
"""

from __future__ import annotations

import threading
import time

from .. import codec, errors
from ..checks import CLUSTER
from ..codec import TaskRef
from ..connection.connection import connect
from ..connection.target import target_of
from ..wire.link import Link, Sink, adopted, rebuild_error
from ..wire.messages import Reply

# As long as a host waits for a client whose connection broke (``resume_s``): the call may be on its way so long, and
# longer behind a large one on a slow network. A task that nobody knows is therefore told so late.
FAR_PATIENCE_S = 5.0
FAR_RETRY_S = 0.02  # the first time; then a half longer each time


def link_for(server_id: str, address: str) -> Link:
    """The way from this process to the host of a reference."""
    found = adopted(server_id)
    if found is None and address.startswith(CLUSTER):
        from .cluster.link import opened  # here: few programs know a cluster

        found = opened(server_id)
    if found is None and address.startswith(CLUSTER):
        name = address.removeprefix(CLUSTER)
        raise errors.UnknownCluster.of_reference(
            f"a reference leads to the cluster {name!r}, and no Cluster of that name is open in this program"
        )
    return found or connect(target_of(address, referred=True))


def fetch_far(ref: TaskRef, sink: Sink) -> None:
    """Ask the host that has, or is about to have, the result of ``ref`` for it."""
    codec.check_reference(ref)
    _FarFetch(link_for(ref.server_id, ref.address), ref.task_id, sink).send()


class _FarFetch:
    """A fetch that may overtake the call it asks for: that one comes over another connection, its caller's own.

    So `UnknownTask` is believed only after `FAR_PATIENCE_S`.
    """

    def __init__(self, link: Link, task_id: str, sink: Sink) -> None:
        self._link = link
        self._task_id = task_id
        self._sink = sink
        self._retry_s = FAR_RETRY_S
        self._believe_at = time.monotonic() + FAR_PATIENCE_S

    def send(self) -> None:
        try:
            self._link.fetch(self._task_id, self, at_home=True)
        except errors.ZmqAgentsError as exc:  # the link is being closed
            self._sink.fail(exc)

    def deliver(self, reply: Reply | None) -> None:
        early = time.monotonic() < self._believe_at
        if reply is not None and reply.code and early and isinstance(rebuild_error(reply), errors.UnknownTask):
            again = threading.Timer(self._retry_s, self.send)
            self._retry_s *= 1.5
            again.daemon = True
            again.start()
        else:
            self._sink.deliver(reply)

    def fail(self, error: Exception) -> None:
        self._sink.fail(error)

    def chunk(self, item: Reply) -> None:
        """Never comes: a FETCH gets one answer."""
