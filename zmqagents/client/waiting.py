"""Waiting for several results: `wait` and `as_completed`, as in `concurrent.futures`.

In an agent's call they wait through the host, which gives the worker slot back meanwhile and refuses a wait that could
never end.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, TypeVar

from .. import errors
from ..agents.context import own_call
from .result import AsyncResult, bounded

R = TypeVar("R")


class Waited(tuple[set[AsyncResult[R]], set[AsyncResult[R]]]):
    """What `wait` returns: the sets ``(done, not_done)``."""

    __slots__ = ()

    @property
    def done(self) -> set[AsyncResult[R]]:
        return self[0]

    @property
    def not_done(self) -> set[AsyncResult[R]]:
        return self[1]


def wait(
    results: Iterable[AsyncResult[R]], timeout: float | None = None, return_when: str = concurrent.futures.ALL_COMPLETED
) -> Waited[R]:
    """`concurrent.futures.wait`, which inside an agent's call also gives the worker slot back while it waits.

    ``timeout``: seconds, None: no limit. Returns the sets ``(done, not_done)``. BlockingCallError on an event loop and
    in a done-callback; DeadlockError where the wait could never end.
    """
    everything = list(results)
    timeout = bounded(timeout)
    end = None if timeout is None else time.monotonic() + timeout
    call = own_call()
    while call is not None:
        pending = [result for result in everything if not result.done()]
        if not pending or _enough(everything, pending, return_when):
            break
        left = None if end is None else max(0.0, end - time.monotonic())
        any_of = return_when != concurrent.futures.ALL_COMPLETED
        if left == 0.0 or not call.host.wait_for(call, [_awaited(result) for result in pending], left, any_of):
            break
    left = None if end is None else max(0.0, end - time.monotonic())
    unfinished = next((result for result in everything if not result.done()), None)
    if unfinished is not None:
        _check_may_block(unfinished, "wait()")
    ended: Any = concurrent.futures.wait(everything, left, return_when)
    return Waited(ended)


def _enough(everything: list[AsyncResult[Any]], pending: list[AsyncResult[Any]], return_when: str) -> bool:
    if return_when == concurrent.futures.FIRST_COMPLETED:
        return len(pending) < len(everything)
    if return_when == concurrent.futures.FIRST_EXCEPTION:
        finished = [result for result in everything if result.done() and not result.cancelled()]
        return any(result.exception() is not None for result in finished)
    return False


def as_completed(results: Iterable[AsyncResult[R]], timeout: float | None = None) -> _AsCompleted[R]:
    """The results in the order in which they finish; CallTimeout when ``timeout`` seconds are over before the last.

    ``len()`` of what is returned is how many are still to come.
    ``timeout``: seconds, None: no limit. Blocks the calling thread for each; inside an agent's call the worker slot is
    given back meanwhile. BlockingCallError and DeadlockError as for `wait`.
    """
    return _AsCompleted(results, timeout)


class _AsCompleted(Generic[R]):
    """The iterator of `as_completed`; its length is how many results are still to come, as progress bars ask."""

    def __init__(self, results: Iterable[AsyncResult[R]], timeout: float | None) -> None:
        self._pending = dict.fromkeys(results)
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._finished = _Finished(self._pending)

    def __iter__(self) -> _AsCompleted[R]:
        return self

    def __len__(self) -> int:
        return len(self._pending)

    def __next__(self) -> AsyncResult[R]:
        pending, finished, end = self._pending, self._finished, self._end
        if not pending:
            raise StopIteration
        while not finished.done:
            left = None if end is None else max(0.0, end - time.monotonic())
            if left == 0.0 or not finished.wait(next(iter(pending)), left):
                raise errors.CallTimeout(f"{len(pending)} results were not finished within {self._timeout:.3g} s")
        result = finished.done.popleft()
        del pending[result]
        return result

    @property
    def pending(self) -> Collection[AsyncResult[R]]:
        """Those that are still to come, in the order in which they were given."""
        return self._pending.keys()

    def those_within(self, seconds: float) -> list[AsyncResult[R]]:
        """All that have finished by now; if none has, those that do within ``seconds``, none perhaps."""
        pending, finished = self._pending, self._finished
        if pending and not finished.done:
            finished.wait(next(iter(pending)), seconds)
        found: list[AsyncResult[R]] = []
        while finished.done:
            found.append(finished.done.popleft())
            del pending[found[-1]]
        return found


class _Finished:
    """Results as they finish. Each is registered once, so that waiting for n of them costs n, not n squared.

    In an agent's call it stands, one after the other, for one result that is not there yet: the call needs them all,
    so for the wait-for graph any will do.
    """

    def __init__(self, results: Iterable[AsyncResult[Any]]) -> None:
        self.done: deque[AsyncResult[Any]] = deque()
        self._on_item: Callable[[], None] | None = None
        self.task_id = self.server_id = ""
        self.inside = False
        self._changed = threading.Condition()
        for result in results:
            result.add_done_callback(self._add)

    def watch(self, on_item: Callable[[], None] | None) -> None:
        """Call ``on_item`` whenever a result is finished, until told otherwise."""
        self._on_item = on_item

    def ready(self) -> bool:
        return bool(self.done)

    def wait(self, pending: AsyncResult[Any], timeout: float | None) -> bool:
        """Until another one is done; False after ``timeout`` seconds."""
        call = own_call()
        awaited = _awaited(pending)
        self.task_id, self.server_id = getattr(awaited, "task_id", ""), getattr(awaited, "server_id", "")
        self.inside = getattr(awaited, "inside", False)
        if call is not None and call.host.wait_for_item(call, self, bounded(timeout)):
            return self.ready() or timeout is None
        _check_may_block(pending, "as_completed()")
        with self._changed:
            return self._changed.wait_for(self.ready, bounded(timeout))

    def _add(self, result: Any) -> None:
        with self._changed:
            self.done.append(result)
            self._changed.notify_all()
        on_item = self._on_item
        if on_item is not None:
            on_item()


def _check_may_block(result: Any, what: str) -> None:
    if isinstance(result, AsyncResult):
        result.__zmqagents_awaited__().link.check_may_block(what)


def _awaited(result: Any) -> Any:
    """What the host may know of ``result``: of a plain `concurrent.futures.Future` there is nothing more."""
    return result.__zmqagents_awaited__() if isinstance(result, AsyncResult) else result
