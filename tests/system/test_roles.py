"""Who may do what on a host: roles from the allow list, keys that come and go while their owners are connected."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from actors import CALL_TIMEOUT_S, CLASSES, client_of, host, within
from hosts import eventually
from raw_peer import RawPeer, ipc_path
from zmqagents import (
    AgentBase,
    AuthenticationError,
    CallCancelled,
    CallLost,
    ConfigError,
    PermissionRefused,
    RemoteProtocolError,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
    codec,
    current_call,
)
from zmqagents.client.many.pages import Pages
from zmqagents.client.proxy import request_body, value_of
from zmqagents.connection.connection import Connection
from zmqagents.connection.target import Target
from zmqagents.security import curve, keys
from zmqagents.security.keys import KeyStore
from zmqagents.security.roles import Role
from zmqagents.wire import messages
from zmqagents.wire.messages import Kind, Op

pytestmark = pytest.mark.timeout(60)

REVOKED_WITHIN_S = 5.0  # a second is promised; a loaded machine must not fail a test


class Keeper(AgentBase):
    """An agent that does what its caller may not."""

    def delete(self, agent_id: str) -> bool:
        call = current_call()
        assert call is not None
        return bool(call.client().delete_agent(agent_id))

    def finish(self, worker: Any) -> Any:
        return worker.stop()

    def look_at(self, worker: Any) -> Any:
        return worker.get_call_list

    def clear_soon(self, worker: Any) -> Any:
        return worker.delete_all_agent.aio().result(CALL_TIMEOUT_S)

    def count(self) -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1


@dataclass
class House:
    """A host with a key store of its own, and the key stores of its users."""

    launcher: RpcAgentServerLauncher
    store: KeyStore
    users: dict[str, KeyStore]

    @contextlib.contextmanager
    def open_to(self, name: str) -> Iterator[RpcClient]:
        """A connected client of the user ``name``, by TCP. Inside the block this process has that user's keys."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZMQAGENTS_KEYS", str(self.users[name].path))
            # Not `connect`, whose connections are one for each address.
            link = Connection(Target("127.0.0.1", self.launcher.port, "tcp"))
            with RpcClient(link=link, timeout=CALL_TIMEOUT_S) as client:
                link.settle(CALL_TIMEOUT_S)
                yield client

    def add(self, name: str, role: Role) -> None:
        self.store.authorize(name, self.users[name].client_keypair().public, role)


def house_in(place: Path, **roles: Role | None) -> Iterator[House]:
    users = {name: KeyStore.open(place / name) for name in roles}
    store = KeyStore.open(place / "host")
    for name, role in roles.items():
        if role is not None:
            store.authorize(name, users[name].client_keypair().public, role)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQAGENTS_KEYS", str(store.path))
        launcher = RpcAgentServerLauncher(custom_agent_classes=[*CLASSES, Keeper], local_mode=True, grace_s=0.2)
        launcher.launch()
    try:
        yield House(launcher, store, {**users, "self": store})
    finally:
        launcher.shutdown()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    yield from house_in(
        tmp_path_factory.mktemp("house"), ann="call", bob="call", boss="admin", new=None, gone="call", eve="view",
    )  # fmt: skip


@pytest.fixture
def ann(house: House) -> Iterator[RpcClient]:
    with house.open_to("ann") as client:
        yield client


@pytest.fixture
def bob(house: House) -> Iterator[RpcClient]:
    with house.open_to("bob") as client:
        yield client


@pytest.fixture
def boss(house: House) -> Iterator[RpcClient]:
    with house.open_to("boss") as client:
        yield client


# ---------------------------------------------------------------- the table


def test_a_caller_makes_finds_calls_and_deletes_its_agents(bob: RpcClient) -> None:
    desk = bob.create_agent("Desk", agent_id="bobs")
    assert desk.echo(1) == 1
    assert desk.colour == "grey"
    assert desk(2).result(CALL_TIMEOUT_S) == 2
    with bob.create_agent("Keeper").count() as numbers:
        assert [next(numbers) for _ in range(40)] == list(range(40))
    assert bob.get_agent("bobs").echo(3) == 3
    assert bob.get_agent_memory("bobs") == ["hello", {"n": 1}]
    assert "bobs" in {agent["agent_id"] for agent in bob.get_agent_list()}
    assert bob.get_server_info()["state"] == "running"
    assert bob.delete_agent("bobs")
    with pytest.raises(UnknownAgent):
        bob.delete_agent("bobs")


def register(client: RpcClient, name: str) -> Any:
    """What a private host takes from its own program: `RpcClient` sends it with a class alone."""
    body = request_body(client.link, Op.REGISTER, (name,), {})
    return value_of(client.link, client.link.call("", Op.REGISTER, body))


REFUSED: dict[str, Callable[[RpcClient], Any]] = {
    "stop": lambda client: client.stop(),
    "delete_all_agent": lambda client: client.delete_all_agent(),
    "set_model_configs": lambda client: client.set_model_configs({"config_name": "m", "model_type": "openai_chat"}),
    "dump": lambda client: client.dump(),
    "get_log": lambda client: client.get_log(),
    "get_result_list": lambda client: client.get_result_list(),
    "get_error_list": lambda client: Pages(client.link).errors().result(CALL_TIMEOUT_S),
    "drain_host": lambda client: value_of(
        client.link, client.link.call("", Op.DRAIN, request_body(client.link, Op.DRAIN, (), {}))
    ),
    "upgrade_records": lambda client: value_of(
        client.link, client.link.call("", Op.UPGRADE, request_body(client.link, Op.UPGRADE, (), {}))
    ),
    "register_class": lambda client: register(client, "Desk"),
    "restart_child": lambda client: client.restart_child("nobody"),
    "put_state": lambda client: value_of(
        client.link, client.link.call("", Op.STATE, request_body(client.link, Op.STATE, (), {}))
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_caller_is_refused_at_once_what_is_for_admins(bob: RpcClient, what: str) -> None:
    with (
        within(1),
        pytest.raises(
            PermissionRefused, match=f"^{what} needs the role admin( or view)?; key:bob has call$"
        ) as refused,
    ):
        REFUSED[what](bob)
    assert isinstance(refused.value, PermissionError)
    assert bob.is_alive()


def test_only_an_admin_sets_environment_variables_of_an_agent(bob: RpcClient) -> None:
    """They choose what the interpreter of the agent's child loads."""
    with pytest.raises(PermissionRefused, match="only an admin may set environment variables"):
        bob.options(isolation="process", env={"PYTHONSTARTUP": "x.py"}).create_agent("Desk")
    assert [row for row in bob.get_agent_list() if row["type"] == "Desk"] == []


def test_every_admin_request_is_in_the_test_above() -> None:
    from zmqagents.broker.management import ADMIN_ONLY

    assert set(REFUSED) == ADMIN_ONLY


def test_an_admin_may(house: House, boss: RpcClient, bob: RpcClient) -> None:
    bob.create_agent("Desk", agent_id="doomed")
    assert boss.delete_agent("doomed")
    assert boss.dump() == []
    assert boss.set_model_configs({"config_name": "m", "model_type": "openai_chat", "model_name": "q", "api_key": "k"})
    assert boss.delete_all_agent()
    assert boss.get_agent_list() == []


def test_the_hosts_own_key_and_its_own_unix_user_are_admins(house: House) -> None:
    with house.open_to("self") as by_key, client_of(house.launcher) as by_socket:
        assert by_key.dump() == by_socket.dump() == []


def test_a_caller_deletes_no_agent_of_others(ann: RpcClient, bob: RpcClient) -> None:
    desk = ann.create_agent("Desk")
    with pytest.raises(PermissionRefused, match="was made by another user: only an admin may delete it"):
        bob.delete_agent(desk.agent_id)
    assert bob.get_agent(desk.agent_id).echo(1) == 1
    assert ann.delete_agent(desk.agent_id)


def test_what_an_agent_does_is_the_hosts_own_doing(ann: RpcClient, bob: RpcClient) -> None:
    desk = ann.create_agent("Desk")
    assert bob.create_agent("Keeper").delete(desk.agent_id)


@pytest.mark.parametrize("method", ["finish", "look_at", "clear_soon"])
@pytest.mark.parametrize("where", ["the same host", "another host", "another host, by its socket"])
def test_a_reference_to_the_host_itself_lends_a_caller_nothing(
    house: House, bob: RpcClient, where: str, method: str
) -> None:
    keeper = bob.create_agent("Keeper")
    with contextlib.ExitStack() as stack:
        victim = house.launcher if where == "the same host" else stack.enter_context(host())
        info = stack.enter_context(client_of(victim)).get_server_info()
        address = f"ipc:{ipc_path(victim)}" if where.endswith("socket") else f"{victim.host}:{victim.port}"
        operations = dict.fromkeys(("stop", "delete_all_agent"), "value ()")
        itself = codec.AgentRef(info["server_id"], address, "", "Host", operations)
        with pytest.raises(RemoteProtocolError, match="the ids in a reference must be 1 to 255 printable characters"):
            getattr(keeper, method)(itself)
        with client_of(victim) as admin:
            assert admin.get_server_info()["state"] == "running"
    assert bob.get_agent(keeper.agent_id).name == "Keeper"
    assert bob.delete_agent(keeper.agent_id)


def test_a_caller_sees_and_cancels_its_own_calls_alone(ann: RpcClient, bob: RpcClient, boss: RpcClient) -> None:
    latch = ann.create_agent("Latch")
    held = latch.hold.aio("mine")
    latch.entered()
    task = held.task_id

    def calls_of(client: RpcClient) -> list[str]:
        return [call["task_id"] for call in client.get_call_list()]

    assert (calls_of(ann), calls_of(bob), calls_of(boss)) == ([task], [], [task])
    with pytest.raises(PermissionRefused, match="is a call of another user: only an admin may cancel it"):
        bob.cancel(task)
    bob.get_result(task).cancel()  # lets go of bob's own wait; the call goes on
    bob.link.cancel(task)
    assert bob.is_alive()  # which the host read after the two
    assert calls_of(ann) == [task]
    assert ann.cancel(task)
    with pytest.raises(CallCancelled):
        held.result(CALL_TIMEOUT_S)
    assert not ann.cancel(task)
    latch.release()


def test_an_admin_cancels_the_calls_of_others(ann: RpcClient, boss: RpcClient) -> None:
    latch = ann.create_agent("Latch")
    held = latch.hold.aio()
    latch.entered()
    assert boss.cancel(held.task_id)
    with pytest.raises(CallCancelled):
        held.result(CALL_TIMEOUT_S)
    latch.release()


def test_calls_that_agents_make_belong_to_the_user_who_began_them(ann: RpcClient, bob: RpcClient) -> None:
    latch = ann.create_agent("Latch")
    node = bob.create_agent("Node")
    asked = node.ask.aio(latch, "hold", 5)
    latch.entered()
    mine = {call["method"] for call in bob.get_call_list()}
    assert mine == {"ask", "hold"}
    assert ann.get_call_list() == []
    latch.release()
    assert asked.result(CALL_TIMEOUT_S) == 5


def test_a_call_cannot_be_cancelled_by_others_before_it_arrives(house: House, ann: RpcClient, bob: RpcClient) -> None:
    desk = ann.create_agent("Desk")
    first = desk.later(1)
    assert first.result(CALL_TIMEOUT_S) == 1
    prefix, _, number = first.task_id.rpartition("-")
    for ahead in range(1, 20):
        bob.link.cancel(f"{prefix}-{int(number) + ahead}")
    assert bob.is_alive()
    assert [desk.later(n).result(CALL_TIMEOUT_S) for n in range(10)] == list(range(10))


def test_whoever_knows_a_task_id_may_have_its_result(ann: RpcClient, bob: RpcClient) -> None:
    result = ann.create_agent("Desk").later("shared")
    assert result.result(CALL_TIMEOUT_S) == "shared"
    assert bob.get_result(result.task_id).result(CALL_TIMEOUT_S) == "shared"
    assert bob.create_agent("Desk").echo(result) == "shared"


# ---------------------------------------------------------------- those that only look


@pytest.fixture
def eve(house: House) -> Iterator[RpcClient]:
    with house.open_to("eve") as client:
        yield client


def test_who_only_looks_sees_everything_with_task_ids_shortened(ann: RpcClient, eve: RpcClient) -> None:
    latch = ann.create_agent("Latch")
    held = latch.hold.aio("secret")
    latch.entered()
    prefix, _, number = held.task_id.rpartition("-")
    shown = [eve.get_call_list(), eve.dump(), eve.get_result_list()[:1]]
    assert [row["task_id"] for rows in shown for row in rows] == [f"{prefix[:4]}..-{number}"] * 3
    assert "in hold" in shown[1][0]["stack"]
    assert prefix not in str(shown)
    assert latch.agent_id in {agent["agent_id"] for agent in eve.get_agent_list()}
    assert eve.get_metrics()["calls"]["running"] == 1
    assert eve.get_server_info()["state"] == "running"
    assert eve.get_health()["ready"]
    assert isinstance(Pages(eve.link).errors().result(CALL_TIMEOUT_S), list)
    around = Pages(eve.link).around(f"{prefix[:4]}..-{number}").result(CALL_TIMEOUT_S)["calls"]
    assert [row["method"] for row in around] == ["hold"]
    latch.release()
    assert held.result(CALL_TIMEOUT_S) == "secret"


SEEN_BY_LOOKERS = ("dump", "get_log", "get_result_list", "get_error_list")


def without_more(ask: Callable[[RpcClient], Any]) -> Callable[[RpcClient, str, str], Any]:
    return lambda eve, agent, task: ask(eve)


LOOKER_REFUSED: dict[str, Callable[[RpcClient, str, str], Any]] = {
    "a method": lambda eve, agent, task: eve.get_agent(agent).echo(1),
    "a method without waiting": lambda eve, agent, task: eve.get_agent(agent).later(1).result(CALL_TIMEOUT_S),
    "an attribute": lambda eve, agent, task: eve.get_agent(agent).colour,
    "a large argument": lambda eve, agent, task: eve.get_agent(agent).echo("x" * 200_000),
    "a new agent": lambda eve, agent, task: eve.create_agent("Desk"),
    "what an agent remembers": lambda eve, agent, task: eve.get_agent_memory(agent),
    "a result": lambda eve, agent, task: eve.get_result(task).result(CALL_TIMEOUT_S),
    "a file": lambda eve, agent, task: eve.download_file("/etc/passwd", os.devnull),
    "a cancel": lambda eve, agent, task: eve.cancel(task),
    "a deletion": lambda eve, agent, task: eve.delete_agent(agent),
    **{name: without_more(ask) for name, ask in REFUSED.items() if name not in SEEN_BY_LOOKERS},
}


@pytest.mark.parametrize("what", LOOKER_REFUSED)
def test_who_only_looks_calls_and_changes_nothing(ann: RpcClient, eve: RpcClient, what: str) -> None:
    desk = ann.create_agent("Desk")
    kept = desk.later("mine")
    assert kept.result(CALL_TIMEOUT_S) == "mine"
    agents, calls = len(eve.get_agent_list()), eve.get_server_info()["calls"]["accepted"]
    with pytest.raises(PermissionRefused, match="key:eve has view"):
        LOOKER_REFUSED[what](eve, desk.agent_id, kept.task_id)
    assert (len(eve.get_agent_list()), eve.get_server_info()["calls"]["accepted"]) == (agents, calls)
    assert ann.delete_agent(desk.agent_id)


def test_a_cancel_without_an_answer_of_who_only_looks_does_nothing(house: House, eve: RpcClient) -> None:
    with client_of(house.launcher) as own, standing_for(house, "", "view") as looker:
        latch = own.create_agent("Latch")
        held = latch.hold.aio(1)
        latch.entered()
        for client in (eve, looker):  # the second is the same user as the one whose call it is
            client.link.cancel(held.task_id)
            assert client.is_alive()
        assert [row["task_id"] for row in own.get_call_list()] == [held.task_id]
        latch.release()
        assert held.result(CALL_TIMEOUT_S) == 1


# ---------------------------------------------------------------- connections in the name of others


@contextlib.contextmanager
def standing_for(house: House, user: str, role: Role, transport: Any = "ipc") -> Iterator[RpcClient]:
    """A client whose connection is opened for the user ``user``, by its socket or by the key of a web process."""
    public = house.users[user].client_keypair().public if user else ""
    acts_for = (f"key:{user}:{public}" if user else "", role)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQAGENTS_KEYS", str(house.store.path))
        link = Connection(Target("127.0.0.1", house.launcher.port, transport, acts_for=acts_for))
        with RpcClient(link=link, timeout=CALL_TIMEOUT_S) as client:
            yield client


def test_a_program_of_the_hosts_user_connects_in_the_name_of_others(
    house: House, ann: RpcClient, bob: RpcClient
) -> None:
    with standing_for(house, "ann", "call") as for_ann:
        latch = for_ann.create_agent("Latch")
        held = latch.hold.aio(1)
        latch.entered()
        assert [row["task_id"] for row in ann.get_call_list()] == [held.task_id]
        assert bob.get_call_list() == []
        with pytest.raises(PermissionRefused, match="key:ann has call"):
            for_ann.dump()
        latch.release()
        assert held.result(CALL_TIMEOUT_S) == 1
        assert ann.delete_agent(latch.agent_id)


def test_a_connection_in_the_name_of_another_takes_no_more_than_that_one_has(house: House) -> None:
    for user, role in (("ann", "admin"), ("ann", "view"), ("eve", "call"), ("eve", "admin"), ("new", "view")):
        with (
            standing_for(house, user, role) as client,  # type: ignore[arg-type]
            pytest.raises(PermissionRefused, match=r"not part of the role|no user of this host"),
        ):
            client.get_server_info()
    with standing_for(house, "boss", "view") as looker, pytest.raises(PermissionRefused, match="key:boss has view"):
        looker.create_agent("Desk")


def test_a_key_takes_the_name_of_no_other_unless_it_is_that_of_a_web_process(house: House) -> None:
    door = house.store.door_keypair().public

    def outcome() -> str:
        with contextlib.suppress(AuthenticationError), standing_for(house, "ann", "call", "tcp") as client:
            try:
                return str(client.get_server_info()["state"])
            except PermissionRefused as exc:
                return str(exc)
        return ""

    roles: dict[Role, str] = {
        "call": "may not connect in the name",
        "admin": "may not connect in the name",
        "door": "running",
    }
    try:
        for role, expected in roles.items():
            house.store.authorize("page", door, role)
            assert eventually(lambda expected=expected: expected in outcome(), REVOKED_WITHIN_S), (role, outcome())  # type: ignore[misc]
    finally:
        house.store.revoke("page")


def test_a_revoked_key_ends_what_was_opened_in_its_name(house: House) -> None:
    house.add("gone", "call")

    def opened() -> bool:
        with contextlib.suppress(PermissionRefused), standing_for(house, "gone", "call") as client:
            return client.is_alive()
        return False

    assert eventually(opened, REVOKED_WITHIN_S)
    with standing_for(house, "gone", "call") as client:
        assert client.is_alive()
        house.store.revoke("gone")

        def refused() -> bool:
            try:
                client.get_server_info()
            except (AuthenticationError, PermissionRefused):
                return True
            return False

        assert eventually(refused, REVOKED_WITHIN_S)


# ---------------------------------------------------------------- keys that come, change and go


def test_a_key_that_is_added_may_connect_within_a_second(house: House) -> None:
    with within(CALL_TIMEOUT_S), pytest.raises(AuthenticationError), house.open_to("new"):
        pass
    house.add("new", "call")

    def connects() -> bool:
        with contextlib.suppress(AuthenticationError), house.open_to("new") as client:
            return client.is_alive()
        return False

    assert eventually(connects, REVOKED_WITHIN_S)


def test_a_role_that_changes_counts_for_who_is_connected(house: House, bob: RpcClient) -> None:
    def is_admin() -> bool:
        with contextlib.suppress(PermissionRefused):
            return bob.dump() is not None
        return False

    assert not is_admin()
    house.add("bob", "admin")
    assert eventually(is_admin, REVOKED_WITHIN_S)
    house.add("bob", "call")
    assert eventually(lambda: not is_admin(), REVOKED_WITHIN_S)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_the_session_of_a_key_that_is_revoked_ends(house: House, ann: RpcClient, how: str) -> None:
    house.add("gone", "call")

    def connected(stack: contextlib.ExitStack) -> RpcClient | None:
        with contextlib.suppress(AuthenticationError):
            return stack.enter_context(house.open_to("gone"))
        return None

    with contextlib.ExitStack() as stack:
        clients: list[RpcClient | None] = []
        assert eventually(lambda: clients.append(connected(stack)) or clients[-1] is not None, REVOKED_WITHIN_S)  # type: ignore[func-returns-value]
        client = clients[-1]
        assert client is not None
        latch, keeper = client.create_agent("Latch"), client.create_agent("Keeper")
        open_calls = [latch.hold.aio(1), latch.hold.aio(2), client.create_agent("Desk").later(latch.hold.aio(3))]
        latch.entered()
        numbers = keeper.count()
        assert next(numbers) == 0
        if how == "removed":
            house.store.revoke("gone")
        else:
            house.store.authorize("gone", keys.new_pair().public)
        with within(REVOKED_WITHIN_S):
            for result in open_calls:
                with pytest.raises((AuthenticationError, CallLost)):
                    result.result(CALL_TIMEOUT_S)
            with pytest.raises((AuthenticationError, CallLost)):
                list(numbers)
        for ask in (client.is_alive, client.get_agent_list, lambda: keeper.name):
            with pytest.raises(AuthenticationError):
                ask()
    assert ann.get_call_list() == []
    assert eventually(lambda: house_is_idle(house), REVOKED_WITHIN_S)  # its calls were cancelled, not only forgotten
    assert ann.is_alive()


def house_is_idle(house: House) -> bool:
    with client_of(house.launcher) as client:
        return bool(client.get_server_info()["calls_open"] == 0)


# ---------------------------------------------------------------- peers that keep to no rules


@contextlib.contextmanager
def raw_user(house: House, name: str, client_id: bytes) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER with the keys of ``name`` that has said HELLO as the client ``client_id``."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.setsockopt(zmq.RCVTIMEO, 3000)
        curve.client_curve(dealer, house.users[name].client_keypair(), house.store.server_keypair().public)
        dealer.connect(f"tcp://127.0.0.1:{house.launcher.port}")
        hello = codec.pack({"client": client_id, "versions": [messages.VERSION]})
        dealer.send_multipart([messages.header(Kind.HELLO), hello])
        yield dealer


def test_the_id_of_another_users_client_is_not_to_be_had(house: House) -> None:
    with RawPeer(house.launcher) as victim:  # by ipc, as the host's own user
        victim.hello()
        with raw_user(house, "bob", victim.client_id) as thief:
            victim.call(1, "", Op.LIST)
            assert victim.answer_to(1)[0].kind == Kind.RESULT
            assert not thief.poll(300), "not even a WELCOME"


def test_a_user_id_in_the_metadata_of_a_peer_counts_for_nothing(house: House) -> None:
    """What a peer may claim (`X-` properties, an id in HELLO) is not what ZAP says."""
    with raw_user(house, "bob", os.urandom(messages.CLIENT_ID_BYTES)) as dealer:
        welcome = messages.parse_header(dealer.recv_multipart()[0])
        claims = {"client": os.urandom(messages.CLIENT_ID_BYTES), "versions": [1], "user": "self", "role": "admin"}
        dealer.send_multipart([messages.header(Kind.HELLO, token=welcome.token), codec.pack(claims)])
        token = messages.parse_header(dealer.recv_multipart()[0]).token
        body = (codec.encode_call((), {}).payload,)
        dealer.send_multipart(messages.call_frames(1, token, "", Op.STOP, body, options={"role": "admin"}))
        head, rest = messages.split_answer(dealer.recv_multipart())
        assert head.kind == Kind.ERROR
        assert b"PermissionRefused" in rest[0]


# ---------------------------------------------------------------- without keys


def test_who_comes_in_without_a_key_may_call_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with host(insecure=True) as launcher:
        assert "insecure: any user of this machine can call its agents" in caplog.text
        with RpcClient("127.0.0.1", launcher.port, transport="tcp-insecure", timeout=CALL_TIMEOUT_S) as client:
            assert client.create_agent("Desk").echo(1) == 1
            with pytest.raises(PermissionRefused, match=r"stop needs the role admin; insecure:[a-z2-7]{16} has call"):
                client.stop()


def test_off_this_machine_the_words_must_be_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="insecure opens the host to every program that can reach its port"):
        RpcAgentServerLauncher(insecure=True)
    with host(insecure="yes-i-mean-it", local_mode=False) as launcher:
        assert "insecure: every program that can reach this machine can call its agents" in caplog.text
        connections = psutil.Process(launcher.pid).net_connections("tcp")
        assert [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN] == ["0.0.0.0"]
        with RpcClient("127.0.0.1", launcher.port, transport="tcp-insecure", timeout=CALL_TIMEOUT_S) as client:
            assert client.create_agent("Desk").echo(1) == 1


def test_a_host_with_keys_lets_nobody_in_without_one(house: House) -> None:
    with RpcClient("127.0.0.1", house.launcher.port, transport="tcp-insecure") as client:
        start = time.monotonic()
        with pytest.raises(AuthenticationError):
            client.get_server_info()
        assert time.monotonic() - start < CALL_TIMEOUT_S
