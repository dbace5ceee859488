"""What a client's connection does when something goes wrong at an awkward moment. No host: a bare ROUTER at most."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import zmq

from actors import Desk, Latch, client_of, host, within
from zmqagents import AuthenticationError, CallLost, CallTimeout, HostUnreachable, RpcClient, codec
from zmqagents.connection import channel as channel_module
from zmqagents.connection.channel import LATE_S, Channel
from zmqagents.connection.connection import Connection
from zmqagents.connection.requests import Plain, Request
from zmqagents.connection.session import Outstanding
from zmqagents.connection.target import Target
from zmqagents.errors import BlockingCallError
from zmqagents.wire import messages
from zmqagents.wire.link import Link, Waiter
from zmqagents.wire.messages import Kind

pytestmark = pytest.mark.timeout(60)

NOTHING = codec.encode_call((), {})


class Stub:
    """A ROUTER that says WELCOME, and answers calls with 1 if it is told to. It runs until the block ends."""

    def __init__(self, path: str, epoch: str, *, answers: bool) -> None:
        self._path = path
        self._epoch = epoch
        self.answers = answers
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Stub:
        self._thread.start()
        self._bound.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(f"ipc://{self._path}")
            self._bound.set()
            while not self._stop.is_set():
                if router.poll(20):
                    peer, *parts = router.recv_multipart()
                    self._answer(router, peer, messages.parse_header(parts[0]))

    def _answer(self, router: zmq.Socket[bytes], peer: bytes, head: messages.Header) -> None:
        if head.kind == Kind.HELLO:
            welcome = codec.pack({"server_id": "stub", "epoch": self._epoch})
            router.send_multipart([peer, messages.header(Kind.WELCOME, head.call_id, 7), welcome])
        elif head.kind == Kind.CALL and self.answers:
            router.send_multipart([peer, *messages.answer_frames(Kind.RESULT, head.call_id, 7, (codec.pack(1),))])


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a channel has tried to connect."""
    tries: list[float] = []
    resolve = Target.resolve

    def counted(target: Target) -> tuple[str, str | None]:
        tries.append(time.monotonic())
        return resolve(target)

    monkeypatch.setattr(Target, "resolve", counted)
    return tries


def channel_of(link: Link) -> Channel:
    """The channel of a link that is connected."""
    assert isinstance(link, Connection)
    assert link.channel is not None
    return link.channel


def until_alone(link: Link, call: Callable[[], object]) -> Channel:
    """Make calls until the I/O thread rests and this thread reads its answers itself."""
    with within(10):
        while True:
            call()
            channel = channel_of(link)
            if channel.resting:
                return channel


def cpu_of(seconds: float) -> float:
    """CPU seconds of this process in the next ``seconds``."""
    begin = time.process_time()
    time.sleep(seconds)
    return time.process_time() - begin


# ---------------------------------------------------------------- no host


@pytest.mark.parametrize("request_kind", ["call", "cancel"])
def test_a_client_whose_host_is_not_there_rests_after_it_was_told(
    request_kind: str, path: str, connects: list[float]
) -> None:
    connection = Connection(Target("", None, ipc=path))
    with pytest.raises(HostUnreachable):
        connection.call("a", "m", NOTHING, timeout=5)
    if request_kind == "cancel":
        connection.cancel("task-1")
    tries = len(connects)
    assert cpu_of(0.3) < 0.15
    assert len(connects) <= tries + 1
    connection.close()


def test_a_client_rests_after_a_handshake_that_broke_off_and_a_refusal(connects: list[float]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()
            listener.close()

        rude = threading.Thread(target=hang_up)
        rude.start()
        with RpcClient("localhost", port, transport="tcp-insecure") as client:
            with pytest.raises((HostUnreachable, AuthenticationError)):
                client.get_agent_list()
            rude.join()
            assert cpu_of(0.3) < 0.15


@pytest.mark.parametrize("target", [Target("", None, ipc="/tmp/a\0b"), Target("a..b", 7000)], ids=["nul", "dots"])
def test_an_address_that_there_cannot_be_is_unreachable_at_once(target: Target) -> None:
    connection = Connection(target)
    with pytest.raises(HostUnreachable), within(5):
        connection.call("a", "m", NOTHING, timeout=30)
    connection.close()


# ---------------------------------------------------------------- the host is back


def test_a_call_between_two_attempts_is_sent_as_soon_as_the_host_is_back(path: str) -> None:
    connection = Connection(Target("", None, ipc=path))
    with Stub(path, "first", answers=False), pytest.raises(CallTimeout):
        connection.call("a", "m", NOTHING, timeout=0.05)
    # No request is open after this one, and the next attempt is ahead. It is lost if it was sent over the connection
    # before the client saw the connection end.
    with pytest.raises((CallTimeout, HostUnreachable, CallLost)):
        connection.call("a", "m", NOTHING, timeout=0.01)
    with Stub(path, "second", answers=True), within(5):
        while True:
            try:
                assert connection.call("a", "m", NOTHING, timeout=10).body == (codec.pack(1),)
                break
            except HostUnreachable:  # it was tried a moment too early
                pass
    connection.close()


class _Large(Plain):
    is_call = True


def test_what_a_large_call_has_opened_is_free_after_the_connection_has_gone() -> None:
    book = Outstanding()
    book.max_open_bytes = 1 << 28
    request = Request(_Large(Kind.CALL), Waiter(), None)
    book.add(request)
    book.sent(request, 200 << 20)
    book.drop(request.call_id)
    assert not book.has_room_for(100 << 20)
    book.carry_over(lambda _: False)
    assert book.has_room_for(100 << 20)


def test_a_connection_that_was_closed_and_used_again_keeps_no_former_channel(path: str) -> None:
    with Stub(path, "e", answers=True):
        connection = Connection(Target("", None, ipc=path))
        former = []
        for _ in range(3):
            connection.call("a", "m", NOTHING, timeout=10)
            former.append(weakref.ref(channel_of(connection)))
            connection.close()
        gc.collect()
        assert [each() for each in former] == [None] * 3


# ---------------------------------------------------------------- deadlines and interruptions


def test_a_caller_that_reads_itself_is_told_soon_after_its_deadline(path: str) -> None:
    with Stub(path, "e", answers=True) as stub:
        connection = Connection(Target("", None, ipc=path))
        until_alone(connection, lambda: connection.call("a", "m", NOTHING, timeout=10))
        stub.answers = False
        begin = time.monotonic()
        with pytest.raises(CallTimeout):
            connection.call("a", "m", NOTHING, timeout=1.2)
        assert time.monotonic() - begin < 1.2 + LATE_S + 0.5
        connection.close()


@contextmanager
def amid(matches: Callable[[FrameType, str, Any], bool], act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` once, in this thread, in the middle of the block: at the first event of Python's that matches."""
    done = False

    def on_event(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal done
        if not done and matches(frame, event, arg):
            done = True
            act()

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert done


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_finalizer_amid_a_request_of_its_own_thread_does_not_wait_for_itself(path: str) -> None:
    with Stub(path, "e", answers=True):
        connection = Connection(Target("", None, ipc=path))

        def abandon() -> None:  # as the garbage collector may, at any line
            connection.abandon("task-1")

        with amid(lambda frame, event, arg: event == "call" and frame.f_code is Channel.__init__.__code__, abandon):
            connection.submit("a", "m", NOTHING, Waiter(), timeout=10)
        with amid(lambda frame, _, arg: frame.f_code is Outstanding.add.__code__ and arg is next, abandon), within(5):
            connection.submit("a", "m", NOTHING, Waiter(), timeout=10)
        connection.close()
        connection.abandon("task-1")
        assert connection.channel is None  # nothing was opened for it


def test_an_interrupted_wake_up_is_made_up_for_by_the_next(path: str) -> None:
    def is_wake_up(frame: FrameType, event: str, arg: Any) -> bool:
        return event == "c_call" and arg.__name__ == "send" and frame.f_code.co_filename == channel_module.__file__

    with Stub(path, "e", answers=True):
        connection = Connection(Target("", None, ipc=path))
        connection.call("a", "m", NOTHING, timeout=10)

        def call_until_the_io_thread_was_asleep() -> None:
            while True:
                time.sleep(0.02)
                connection.submit("a", "m", NOTHING, Waiter(), timeout=10)

        with pytest.raises(KeyboardInterrupt), amid(is_wake_up, interrupt), within(10):
            call_until_the_io_thread_was_asleep()
        assert not channel_of(connection).session.book.waiting
        with within(5):
            connection.call("a", "m", NOTHING, timeout=10)
        connection.close()


@pytest.mark.program
def test_a_call_that_was_interrupted_is_cancelled_on_the_host() -> None:
    with host(Desk, Latch) as server, client_of(server) as client, client_of(server) as other:
        desk, latch = client.create_agent(Desk), client.create_agent(Latch)
        until_alone(client.link, lambda: desk.echo(1))
        main = threading.get_ident()

        def interrupt() -> None:
            latch_there = other.get_agent(latch.agent_id)
            latch_there.entered()
            signal.pthread_kill(main, signal.SIGINT)

        killer = threading.Thread(target=interrupt)
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            latch.hold()
        killer.join()
        with within(5):
            while other.get_server_info()["calls_open"]:
                time.sleep(0.01)
        assert desk.echo(2) == 2
        latch.release()


@pytest.mark.program
@pytest.mark.parametrize("what", ["a call", "a result"])
def test_waiting_in_a_signal_handler_amid_a_call_is_refused(client: RpcClient, what: str) -> None:
    desk, latch = client.create_agent("Desk"), client.create_agent("Latch")
    core = until_alone(client.link, lambda: desk.echo(1))
    errors: list[BaseException] = []

    def on_signal(number: int, frame: object) -> None:
        try:
            if what == "a call":
                desk.echo(2)
            else:
                desk.echo.aio(2).result()
        except BaseException as exc:
            errors.append(exc)

    former = signal.signal(signal.SIGUSR1, on_signal)
    main = threading.get_ident()

    def disturb() -> None:
        with within(10):
            while core.leading_caller != main:
                time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)
        while not errors:
            time.sleep(0.001)
        latch.release()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        latch.hold()
    finally:
        signal.signal(signal.SIGUSR1, former)
    disturber.join()
    assert [type(error) for error in errors] == [BlockingCallError]
    assert desk.echo(3) == 3


@pytest.mark.program
def test_a_call_that_was_interrupted_while_it_was_submitted_is_not_left_open(client: RpcClient) -> None:
    latch: Any = client.create_agent(Latch)
    book = channel_of(client.link).session.book
    hold = latch.hold.aio

    def after_it(frame: FrameType, event: str, arg: Any) -> bool:
        return event == "call" and frame.f_code.co_filename == channel_module.__file__ and bool(book.asking)

    with pytest.raises(KeyboardInterrupt), amid(after_it, interrupt):
        hold()
    with within(5):
        while book.asking or client.get_server_info()["calls_open"]:
            time.sleep(0.01)
    latch.release()


def test_a_program_may_end_while_a_thread_is_just_about_to_connect(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    channel = Channel(Target("", None, ipc=path))
    channel.close()
    channel.join()
    assert not channel.is_alive()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its thread, which never ran, would close its sockets
        del channel
        gc.collect()


# ---------------------------------------------------------------- settings of the program

SETTINGS = {
    "a default time-out of sockets": "import socket; socket.setdefaulttimeout(0.05)",
    "SIGPIPE at its default": "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
}


@pytest.mark.program
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_settings_of_the_program_do_not_touch_the_connection(setting: str) -> None:
    script = f"""
import time
{setting}
from actors import Desk, host, client_of
from zmqagents import HostLost, HostStopping, HostUnreachable, CallLost
with host(Desk) as launcher, client_of(launcher) as client:
    desk = client.create_agent(Desk)
    for number in range(20):
        assert desk.echo(number) == number
    time.sleep(0.2)
    assert desk.echo(1) == 1
    launcher.shutdown(grace_s=0.1)
    for number in range(3):
        try:
            desk.echo(number)
        except (HostLost, HostStopping, HostUnreachable, CallLost):
            pass
print("end")
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
