"""Who reads the socket: a caller that is alone does it itself, and whatever else happens nobody waits for nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from typing import Literal

import pytest

from actors import Desk, client_of, client_on_host, within
from zmqagents import AgentProxy, CallTimeout, RpcAgentServerLauncher, RpcClient, deadline
from zmqagents.connection.channel import LEAD_S, LONE_CALLS, Channel
from zmqagents.connection.connection import Connection

pytestmark = pytest.mark.timeout(60)


def channel_of(client: RpcClient) -> Channel:
    assert isinstance(client.link, Connection)
    channel = client.link.channel
    assert channel is not None
    return channel


def call_until_alone(client: RpcClient, desk: AgentProxy) -> Channel:
    """Make short calls until the I/O thread rests."""
    channel = channel_of(client)
    with within(10):
        while not channel.resting:
            desk.echo(1)
    return channel


def test_a_lone_caller_reads_its_replies_itself(client: RpcClient) -> None:
    desk = client.create_agent("Desk")
    channel = call_until_alone(client, desk)
    resting = 0
    for _ in range(200):
        desk.echo(1)
        resting += channel.resting
    assert resting > 100  # the I/O thread looks in once a second, and then rests again after LONE_CALLS


def test_a_pending_result_keeps_the_io_thread_at_work(client: RpcClient) -> None:
    desk, latch = client.create_agent("Desk"), client.create_agent("Latch")
    channel = call_until_alone(client, desk)
    held = latch.hold_async("held")
    for _ in range(3 * LONE_CALLS):
        desk.echo(1)
        assert not channel.resting
    told = threading.Event()
    held.add_done_callback(lambda _: told.set())
    latch.release()
    assert told.wait(5)


def test_a_long_wait_leaves_the_socket_to_the_io_thread(client: RpcClient) -> None:
    desk, latch = client.create_agent("Desk"), client.create_agent("Latch")
    channel = call_until_alone(client, desk)
    caller = threading.Thread(target=latch.hold)
    caller.start()
    with within(LEAD_S + 3):
        while channel.resting:
            time.sleep(0.01)
    latch.release()
    caller.join()


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD"), reason="needs the switches of one thread")
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_caller_whose_answers_take_long_sleeps_once_for_each(
    server: RpcAgentServerLauncher, transport: Literal["ipc", "tcp"]
) -> None:
    calls = 40
    with client_of(server, transport=transport) as client:
        desk = client.create_agent("Desk")
        call_until_alone(client, desk)
        desk.nap(0.01)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for _ in range(calls):
            desk.nap(0.01)
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
    assert slept < 1.5 * calls  # to wait for a millisecond first would make it 2


def test_a_caller_that_reads_itself_keeps_its_deadline(client: RpcClient) -> None:
    desk, latch = client.create_agent("Desk"), client.create_agent("Latch")
    call_until_alone(client, desk)
    with pytest.raises(CallTimeout), within(2), deadline(0.3):
        latch.hold()
    latch.release()


def test_callers_results_and_pauses_in_any_mixture_never_wait_for_nothing(client: RpcClient) -> None:
    slowest_s: list[float] = []

    def work(seed: int) -> None:
        choice, desk = random.Random(seed), client.create_agent(Desk)
        for number in range(250):
            start, kind = time.monotonic(), choice.random()
            if kind < 0.6:
                assert desk.echo(number) == number
            elif kind < 0.95:
                results = [desk.later(each) for each in range(choice.randint(1, 5))]
                assert [result.result(20) for result in results] == list(range(len(results)))
            else:
                time.sleep(choice.random() * 0.02)
            slowest_s.append(time.monotonic() - start)

    for threads in (1, 2, 6):
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    slowest_s.sort()
    # A wake-up that is missed costs LEAD_S; one or two may be the machine's.
    assert slowest_s[-4] < 0.9 * LEAD_S


# A signal that comes while pyzmq frees a frame is told to sys.unraisablehook, since it can be raised nowhere.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_caller_harms_neither_the_connection_nor_a_call() -> None:
    with client_on_host(Desk) as client:  # the shared one would have another socket afterwards
        _interrupt_a_caller(client)


def _interrupt_a_caller(client: RpcClient) -> None:
    desk = client.create_agent("Desk")
    call_until_alone(client, desk)
    main, stop = threading.get_ident(), threading.Event()
    interrupts = answers = 0
    calling = False

    def interrupt() -> None:
        while not stop.wait(random.random() * 0.01):
            signal.pthread_kill(main, signal.SIGUSR1)

    def on_signal(number: int, frame: object) -> None:
        nonlocal calling
        if calling:  # elsewhere it would end the test
            calling = False
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        while answers < 300 or interrupts < 20:
            try:
                calling = True
                assert desk.echo(answers) == answers
                calling = False
                answers += 1
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, former)
    assert desk.echo("after") == "after"
    with within(5):
        while client.get_server_info()["calls_open"]:
            pass


def test_a_fork_amid_a_call_leaves_the_parent_its_reply(client: RpcClient) -> None:
    desk, latch = client.create_agent("Desk"), client.create_agent("Latch")
    call_until_alone(client, desk)
    replies: list[str] = []
    caller = threading.Thread(target=lambda: replies.append(latch.hold("mine")))
    caller.start()
    latch.entered()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    latch.release()
    caller.join(10)
    assert replies == ["mine"]
