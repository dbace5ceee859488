"""libzmq aborts a host on a burst over TCP; what becomes of it with a supervisor and declared agents."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts import Worker, eventually, is_gone
from scale import pick
from zmqagents import RpcAgentServerLauncher, RpcClient, ZmqAgentsError
from zmtp import connect_tcp, flood_with_pings_and_go

pytestmark = pytest.mark.timeout(pick(60, 120))

BACK_S = 3.0  # half a second on two quiet cores
BURSTS = 10  # one may be read before its connection closes; then there is no abort


def seconds_until_back(client: RpcClient, port: int, pid: int) -> float:
    """Abort the host; from then on until a declared agent answers."""
    for _ in range(BURSTS):
        flood_with_pings_and_go(connect_tcp(port))
        if eventually(lambda: is_gone(pid), 0.5):
            break
    else:
        pytest.skip("this libzmq does not abort")
    died = time.monotonic()
    while time.monotonic() - died < 20:
        with contextlib.suppress(ZmqAgentsError, ConnectionError):
            if client.get_agent("clerk").echo(1, timeout=0.5) == 1:
                return time.monotonic() - died
        time.sleep(0.005)
    raise AssertionError("the host did not come back")


@pytest.mark.parametrize("number", range(pick(1, 10)))
def test_a_host_that_libzmq_has_aborted_is_back_with_its_agents_and_every_caller_is_told(number: int) -> None:
    launcher = RpcAgentServerLauncher(
        custom_agent_classes=[Worker], agents={"clerk": Worker}, restart=True, local_mode=True, insecure=True
    )
    with launcher, RpcClient(launcher.host, launcher.port) as client:
        assert launcher.pid is not None
        clerk = client.get_agent("clerk")
        open_call = clerk.nap(30)
        with ThreadPoolExecutor(1) as threads:
            blocked = threads.submit(clerk.echo, 1)
            took_s = seconds_until_back(client, launcher.port or 0, launcher.pid)
            with pytest.raises(ConnectionError):
                open_call.result(5)
            with pytest.raises(ConnectionError):
                blocked.result(5)
        print(f"back after {took_s:.3f} s")
    assert took_s < BACK_S
