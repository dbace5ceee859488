"""Who steers: the role of the router thread, which passes to another thread when user code keeps the one that has it.

The router thread runs short methods itself (the *fast lane*), for a hand-off to a worker costs more than they do.
That they are short is a guess from their past (`pace`). What makes a wrong guess harmless:

* A second thread *stands by*. While there is traffic on the fast lane it looks every `LOOK_S`, and sooner if it finds
  an agent's code running. If that is the same run as at the two looks before, it takes the helm: sockets, timers and
  dispatcher are its own from then on. (At one look, it would often be a thread that the operating system has kept from
  running, and not long code: who looks gets the interpreter lock just when that thread is let in again.)
* Code that is about to wait, or calls anything of ours, gives the helm up first (`leave`), at once.

Either way the former router thread finds out when the code comes back (`end` is False), hands its result in as a
worker does, and stands by in its turn. Code that holds the interpreter lock stops everybody, as in any thread.

There is one *token*, in the steering thread's hands but for the time in which it runs an agent's code; then it lies
where exactly one thread can take it back: the same thread at the end, or the one that stands by. It bears the ident of
who laid it down, for a former router thread that comes back must not take its successor's. No lock is needed for
that, nor allowed: a garbage collection may run a finalizer that posts an event at any point of this module.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

__all__ = ["Leader", "Relieved"]

LOOK_S = 0.001
CLOSE_LOOK_S = 0.0004  # the next look, if an agent's code is running at this one
LOOKS = 2
DOZE_LOOKS = 50  # so many looks without a run on the fast lane, and the one who stands by sleeps until there is one


class Relieved(BaseException):
    """The calling thread has lost the helm while it ran an agent's code, and must touch nothing of the router's."""


class Leader:
    """The role of the router thread. ``steer`` is the loop: it ends by returning, or by raising `Relieved`."""

    def __init__(self, steer: Callable[[], None]) -> None:
        self.thread = 0  # the ident of the thread that steers; 0: it has left, and nobody has taken over yet
        self._loop = steer
        self._token: deque[int] = deque()  # holds its ident while the steering thread runs an agent's code
        self._in_code = 0  # its ident while it does, and while nobody has said that he took over
        self._runs = 0
        self._unwatched = True  # nobody looks: who stands by sleeps, or is not there
        self._words: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the one who stands by
        self._lock = threading.Lock()  # to write the four fields below; the one who stands by clears `_standby` without
        self._standby: threading.Thread | None = None
        self._threads: set[threading.Thread] = set()
        self._made = 0
        self._closed = False
        _leaders.add(self)

    def run(self) -> None:
        """Steer, and stand by when relieved. Returns when the loop has ended, or when nobody needs this thread."""
        self.thread = threading.get_ident()
        self._live()

    def can_watch(self) -> bool:
        """True if a thread stands by, or could be made. Called by the steering thread."""
        return self._standby is not None or self._find_standby()

    def _find_standby(self) -> bool:
        with self._lock:
            if self._standby is not None:  # a former helmsman, since the look above
                return True
            if self._closed:
                return False
            self._made += 1
            thread = threading.Thread(target=self._begin_by, name=f"zmqagents-standby-{self._made}", daemon=True)
            self._standby = thread
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads
            with self._lock:
                self._standby = None
                self._threads.discard(thread)
            return False
        return True

    # ------------------------------------------------------------ around an agent's code, in the steering thread

    def begin(self) -> None:
        """An agent's code begins; `can_watch` was true."""
        self._runs += 1
        self._in_code = self.thread
        self._token.append(self.thread)
        if self._unwatched:
            self._unwatched = False
            self._words.put(None)

    def end(self) -> bool:
        """The code has come back. False: this thread does not steer any more."""
        try:
            self._token.remove(threading.get_ident())
        except ValueError:
            return False
        self._in_code = 0
        return True

    def leave(self) -> None:
        """The code that this thread runs for an agent is about to wait, or may be: let the other one steer."""
        try:
            self._token.remove(threading.get_ident())
        except ValueError:  # it was relieved already
            return
        self.thread = 0  # `_in_code` is the successor's from here on
        self._words.put(None)

    def leads(self) -> bool:
        """True in the thread that steers. If an agent's code asks there, that gives the helm up, and it is False."""
        me = threading.get_ident()
        if self.thread != me:
            return False
        if self._in_code == me:  # not: the token is there. Who stands by may have taken it and not said so yet
            self.leave()
            return False
        return True

    # ------------------------------------------------------------ standing by

    def close(self, timeout: float) -> bool:
        """Let go of the threads that stand by, at the end of the loop; False if one has not come back in time."""
        with self._lock:
            self._closed = True
            threads = self._threads - {threading.current_thread()}
        self._words.put(None)
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _begin_by(self) -> None:
        if self._watch():
            self._live()
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _live(self) -> None:
        while True:
            try:
                self._loop()
                return
            except Relieved:
                pass
            with self._lock:
                if self._closed or self._standby is not None:
                    return
                self._standby = threading.current_thread()
            if not self._watch():
                return

    def _watch(self) -> bool:
        """Stand by until the helm is this thread's: True. False when it is needed no more."""
        seen, calm, same = self._runs, 0, 0
        while not self._closed:
            late = self._pause(seen) if calm >= DOZE_LOOKS else self._look(CLOSE_LOOK_S if self._token else LOOK_S)
            same = same + 1 if late and self._runs == seen and self._token else 0
            if self.thread == 0 or (same >= LOOKS and self._take()):
                self.thread = threading.get_ident()
                self._in_code = 0  # after that: until then the former one would believe that it steers
                self._unwatched = True
                self._standby = None
                return True
            calm = calm + 1 if late and self._runs == seen else 0
            seen = self._runs if late else -1
        self._standby = None
        return False

    def _take(self) -> bool:
        try:
            self._token.pop()
        except IndexError:  # the code has come back just now
            return False
        return True

    def _look(self, after_s: float) -> bool:
        """Wait for the next look: True. False: woken before its time."""
        try:
            self._words.get(timeout=after_s)
        except queue.Empty:
            return True
        return False

    def _pause(self, seen: int) -> bool:
        """Sleep until woken; nothing has run since ``seen``."""
        self._unwatched = True
        if self._runs == seen:  # else one began between the look and the flag
            self._words.get()
        self._unwatched = False
        return False

    def _forget(self) -> None:
        """In a forked child: the sockets are the parent's."""
        self.thread = -1
        self._token.clear()
        self._lock = threading.Lock()
        self._closed = True


_leaders: weakref.WeakSet[Leader] = weakref.WeakSet()


def _forget_all() -> None:
    for leader in list(_leaders):
        leader._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
