"""The connections of the web process in the names of users: of one user one, that all requests use."""

from __future__ import annotations

from typing import cast

from zmqagents import RpcClient
from zmqagents.security.roles import ActsFor
from zmqagents.web.access import Principal
from zmqagents.web.hosts.doors import IDLE_S, MAX_DOORS, Doors
from zmqagents.wire.link import Link

ANN = Principal("key:ann", "call", "ann")


class Client:
    """Stands in for a connection."""

    def __init__(self, acts_for: ActsFor | None) -> None:
        self.acts_for = acts_for
        self.link = cast(Link, object())
        self.closed = False

    def close(self) -> None:
        self.closed = True


class House:
    """Doors, what they have opened, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.opened: list[Client] = []
        self.doors = Doors(self.connect, clock=lambda: self.now)

    def connect(self, acts_for: ActsFor | None) -> RpcClient:
        self.opened.append(Client(acts_for))
        return cast(RpcClient, self.opened[-1])


def test_requests_of_one_user_use_one_connection_and_those_of_others_their_own() -> None:
    house = House()
    ours, looks = Principal("", "admin", "link"), Principal("", "view", "link")
    clients = [house.doors.client(each) for each in (ANN, ours, ANN, looks, ANN)]
    assert [each.acts_for for each in house.opened] == [("key:ann", "call"), None, ("", "view")]
    assert clients[0] is clients[2] is clients[4]


def test_a_request_that_learns_late_of_a_loss_leaves_the_new_connection_alone() -> None:
    house = House()
    old = house.doors.client(ANN).link
    house.doors.drop(ANN, old)
    new = house.doors.client(ANN)
    house.doors.drop(ANN, old)
    assert [each.closed for each in house.opened] == [True, False]
    assert house.doors.client(ANN) is new


def test_connections_that_nobody_uses_are_closed_and_so_are_too_many() -> None:
    house = House()
    house.doors.client(ANN)
    house.now = IDLE_S + 1
    for number in range(MAX_DOORS + 1):
        house.doors.client(Principal(f"key:{number}", "call", str(number)))
    assert [each.closed for each in house.opened] == [True, True, *[False] * MAX_DOORS]
    house.doors.close()
    assert all(each.closed for each in house.opened)
