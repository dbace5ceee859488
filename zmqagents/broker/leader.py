"""Leadership of the router loop: if agent code blocks the leader, a standby thread takes over.

The leader is the router thread: it runs the loop and alone may touch listeners, timers and dispatcher. It also runs
short methods itself (the *fast lane*), for a hand-off to a worker costs more than they do. That they are short is a
guess from their past (`timing`). Two things make a wrong guess harmless:

* A *standby* thread. While there is traffic on the fast lane it looks at the leader every `LOOK_S`, and sooner if it
  finds agent code running. If it finds the same run at three looks in a row, it takes over the leadership. (At one
  look the leader would often be a thread that the operating system has kept from running, and not one in long code: the
  standby gets the interpreter lock just when that thread is let in again.)
* Agent code that is about to wait, or that calls anything of the package, gives up the leadership first (`leave`).

Either way the former leader finds out when the agent code returns (`end` is False), hands the result in as a worker
does, and becomes the standby in its turn. Code that holds the interpreter lock stops everything, as in any thread.

There is one *token*. The leader holds it, but for the time in which it runs agent code; then the token lies where
exactly one thread can take it: the leader at the end of the run, or the standby. The token bears the ident of the
thread that laid it down, so that a former leader cannot take its successor's. No lock is needed for that, nor allowed:
a garbage collection may run a finalizer that posts an event at any point of this module.
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
DOZE_LOOKS = 50  # after so many looks without a run on the fast lane, the standby sleeps until there is one


class Relieved(BaseException):
    """The calling thread lost the leadership while it ran agent code, and must not touch what the leader owns."""


class Leader:
    """The role of the router thread. ``loop`` is the router loop: it ends by returning, or by raising `Relieved`."""

    def __init__(self, loop: Callable[[], None]) -> None:
        self.thread = 0  # the ident of the leader; 0: it has left, and no other thread has taken over yet
        self._loop = loop
        self._token: deque[int] = deque()  # holds the ident of the leader while that runs agent code
        self._in_code = 0  # the same ident, until the run ends or a successor has taken over
        self._runs = 0
        self._unwatched = True  # no thread looks: the standby sleeps, or there is none
        self._words: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the standby
        self._lock = threading.Lock()  # to write the four fields below; the standby clears `standby` without it
        self.standby: threading.Thread | None = None  # None: `can_watch` starts one
        self._threads: set[threading.Thread] = set()
        self._made = 0
        self._closed = False
        _leaders.add(self)

    def run(self) -> None:
        """Lead, and stand by when relieved. Returns when the loop has ended, or when this thread is not needed."""
        self.thread = threading.get_ident()
        self._live()

    def can_watch(self) -> bool:
        """True if there is a standby, or one could be started. Called by the leader."""
        return self.standby is not None or self._find_standby()

    def _find_standby(self) -> bool:
        with self._lock:
            if self.standby is not None:  # a former leader, since the look above
                return True
            if self._closed:
                return False
            self._made += 1
            thread = threading.Thread(target=self._begin_by, name=f"zmqagents-standby-{self._made}", daemon=True)
            self.standby = thread
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads
            with self._lock:
                self.standby = None
                self._threads.discard(thread)
            return False
        return True

    # ------------------------------------------------------------ around agent code, in the leader

    def begin(self) -> None:
        """Agent code begins; `can_watch` was true."""
        self._runs += 1
        self._in_code = self.thread
        self._token.append(self.thread)
        if self._unwatched:
            self._unwatched = False
            self._words.put(None)

    def end(self) -> bool:
        """The code has returned. False: this thread does not lead any more."""
        try:
            self._token.remove(threading.get_ident())
        except ValueError:
            return False
        self._in_code = 0
        return True

    def leave(self) -> None:
        """Agent code in this thread is about to wait, or may be: let the standby lead."""
        try:
            self._token.remove(threading.get_ident())
        except ValueError:  # it was relieved already
            return
        self.thread = 0  # `_in_code` is the successor's from here on
        self._words.put(None)

    def leads(self) -> bool:
        """True in the leader. If agent code asks there, the thread gives up the leadership first, and it is False."""
        me = threading.get_ident()
        if self.thread != me:
            return False
        if self._in_code == me:  # not "if the token is there": the standby may have taken it and not said so yet
            self.leave()
            return False
        return True

    # ------------------------------------------------------------ standing by

    def close(self, timeout: float) -> bool:
        """End the standby and former leaders, at the end of the loop; False if one has not returned in time."""
        with self._lock:
            self._closed = True
            threads = self._threads - {threading.current_thread()}
        self._words.put(None)
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _begin_by(self) -> None:
        if self.watch():
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
                if self._closed or self.standby is not None:
                    return
                self.standby = threading.current_thread()
            if not self.watch():
                return

    def watch(self) -> bool:
        """Stand by until this thread is the leader: True. False: it is not needed any more."""
        seen, calm, same = self._runs, 0, 0
        while not self._closed:
            late = self._pause(seen) if calm >= DOZE_LOOKS else self._look(CLOSE_LOOK_S if self._token else LOOK_S)
            same = same + 1 if late and self._runs == seen and self._token else 0
            if self.thread == 0 or (same >= LOOKS and self.take()):
                self.thread = threading.get_ident()
                self._in_code = 0  # only now: with it cleared, the former leader would believe that it leads
                self._unwatched = True
                self.standby = None
                return True
            calm = calm + 1 if late and self._runs == seen else 0
            seen = self._runs if late else -1
        self.standby = None
        return False

    def take(self) -> bool:
        """Take the token, as the standby: the first step of a takeover. False if the leader has it again."""
        try:
            self._token.pop()
        except IndexError:  # the code has returned just now
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
