"""Hosts whose name or address is one of IPv6."""

from __future__ import annotations

import socket

import pytest

from actors import Desk, client_of, host
from zmqagents import ConfigError, RpcAgentServerLauncher


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("name", ["::1", "[::1]"])
def test_a_host_with_an_ipv6_address_listens_there(name: str, is_local: bool) -> None:
    with (
        host(Desk, host=name, local_mode=is_local) as launcher,
        client_of(launcher, transport="tcp") as client,
        socket.create_connection(("::1", launcher.port or 0), 5),
    ):
        assert client.create_agent(Desk).echo(1) == 1


@needs_ipv6
def test_a_host_of_all_interfaces_with_an_ipv6_address_serves_ipv4_as_well() -> None:
    with host(Desk, host="::1", local_mode=False) as launcher:
        socket.create_connection(("127.0.0.1", launcher.port or 0), 5).close()


@needs_ipv6
def test_a_result_of_an_ipv6_host_is_found_by_its_reference() -> None:
    with host(Desk, host="::1") as there, host(Desk) as here, client_of(there) as one, client_of(here) as other:
        result = one.create_agent(Desk).later("sent")
        assert other.create_agent(Desk).echo(result) == "sent"


@pytest.mark.parametrize("name", ["no-such-machine.invalid", "x" * 70 + ".invalid"])
def test_a_host_name_that_does_not_resolve_is_told_at_the_launch(name: str) -> None:
    launcher = RpcAgentServerLauncher(host=name, custom_agent_classes=[Desk])
    with pytest.raises(ConfigError, match="does not resolve"):
        launcher.launch()
