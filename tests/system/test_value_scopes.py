"""Which classes each side knows: a value of the program's own classes, through real hosts started in each way.

An object arrives equal and of its class, or in its plain form where that is asked for, or the call says no.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import importlib
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import pytest

from actors import client_of, client_on_host, host
from hosts import ROOT, output_of
from zmqagents import (
    AgentBase,
    AgentCallError,
    AsyncRpcClient,
    RpcAgentServerLauncher,
    RpcClient,
    SerializationError,
    async_func,
    errors,
    register_type,
    register_types,
    trust_types,
)

pytestmark = pytest.mark.usefixtures("registry")


class Grade(enum.Enum):
    FINE = "fine"


@dataclasses.dataclass
class Item:
    name: str
    grade: Grade = Grade.FINE


@dataclasses.dataclass
class Order:
    items: list[Item]
    note: str | None = None


@dataclasses.dataclass
class Label:
    name: str


class Rushed(Order):
    pass


class Spot(NamedTuple):
    x: int
    y: int


class Shipment(pydantic.BaseModel):
    order: Any
    spot: Spot


class Stranger:
    """Has no form but what a registration gives it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stranger) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


class Odd(ValueError):
    """Of the program's own."""

    def __init__(self, code: int, order: Order) -> None:
        super().__init__(f"order {code} is odd")
        self.code = code
        self.order = order


SENT = Order([Item("bolt"), Item("nut")], "soon")


class Shop(AgentBase):
    spot: Spot = Spot(1, 2)

    def __init__(self, first: Order | None = None) -> None:
        super().__init__()
        self.first = first

    def look(self, value: Any) -> str:
        return type(value).__name__

    def back(self, value: Any) -> Any:
        return value

    def take(self, order: Order) -> Order:
        assert isinstance(order, Order), order
        return order

    def kept(self) -> Order | None:
        return self.first

    def ship(self, shipment: Shipment) -> Shipment:
        assert isinstance(shipment, Shipment), shipment
        return shipment

    def plainly(self, order: dict[str, Any], spot: list[Any]) -> Any:
        return [type(order).__name__, order, type(spot).__name__]

    @async_func
    def later(self, order: Order) -> Order:
        return order

    def each(self, orders: list[Order]) -> Iterator[Order]:
        yield from orders

    def anything(self) -> Any:
        return SENT

    def stranger(self, text: str) -> Any:
        return Stranger(text)

    def fail(self, order: Order) -> None:
        raise Odd(7, order)

    def take_shop(self, shop: Shop) -> Shop:
        return shop

    def shops(self, shops: list[Any]) -> dict[str, list[Any]]:
        return {"first": shops}

    def ask(self, shop: Any, order: Order) -> str:
        return type(shop.take(order)).__name__

    def relay(self, shop: Any, value: Any) -> list[Any]:
        return [shop.anything_later(value)]

    @async_func
    def anything_later(self, value: Any) -> Any:
        return value

    @property
    def newest(self) -> Order | None:
        return self.first

    @property
    def plain_newest(self) -> dict[str, Any]:
        return self.first  # type: ignore[return-value]

    @functools.cached_property
    def total(self) -> Order:
        return Order([])

    def remember(self, value: Any) -> None:
        self.kept_value = value

    def remembered(self) -> Any:
        return self.kept_value

    @staticmethod
    def alone(order: Order) -> Order:
        assert isinstance(order, Order), order
        return order

    def of_another(self, order: Order, result: Order) -> str:
        return f"{type(order).__name__} {type(result).__name__}"


class Stall(AgentBase, pydantic.BaseModel):
    order: Order
    info: dict[str, Any] = {}
    other: Any = None

    def kind_of_order(self) -> str:
        return type(self.order).__name__


class NamedStall(Stall):
    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


@dataclasses.dataclass
class Stand(AgentBase):
    order: Order
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    other: Any = None

    def kind_of_order(self) -> str:
        return type(self.order).__name__


@pytest.fixture(scope="module")
def shop() -> Iterator[RpcClient]:
    """A client of a host that any client may have, with nothing registered."""
    with client_on_host(Shop) as client:
        client.is_alive()
        yield client


@pytest.fixture(scope="module")
def stalls() -> Iterator[RpcClient]:
    with client_on_host(Stall, NamedStall, Stand) as client:
        client.is_alive()
        yield client


# ---------------------------------------------------------------- public hosts


def test_an_annotated_argument_and_result_arrive_as_what_they_are(shop: RpcClient) -> None:
    agent = shop.create_agent(Shop, SENT)
    for order in (SENT, Rushed([Item("pin")]), Order([])):
        for got in (agent.take(order), agent.take(order=order), agent.later(order).result(), agent.alone(order)):
            assert (type(got), got) == (type(order), order)
        assert list(agent.each([order, order])) == [order, order]
    assert agent.kept() == SENT
    shipment = Shipment(order=SENT, spot=Spot(1, 2))
    with pytest.raises(SerializationError, match=r"the receiving side does not know"):
        agent.ship(shipment)  # Any says nothing of what is in it


def test_a_result_that_is_passed_on_is_of_the_annotated_class(shop: RpcClient) -> None:
    agent: Any = shop.create_agent(Shop)
    assert agent.of_another(SENT, agent.later(SENT)) == "Order Order"


def test_an_object_of_an_unknown_class_is_refused_on_the_side_that_finds_out_with_the_remedies(shop: RpcClient) -> None:
    agent = shop.create_agent(Shop)
    name = f"{__name__}:Order"
    with pytest.raises(SerializationError) as caught:
        agent.look({"orders": [SENT]})
    text = str(caught.value)
    assert re.search(r"look: args\[0\]\['orders'\]\[0\] is an Order, which the receiving side does not know", text)
    for remedy in ("annotate the parameter", f"register {name} with register_type", "--types", "plain_types"):
        assert remedy in text
    assert caught.value.type_name == name
    with pytest.raises(SerializationError, match=r"result is an Order, which the receiving side does not know"):
        agent.anything()
    with pytest.raises(SerializationError, match=r"kwargs\['value'\] is a Spot"):
        agent.look(value=Spot(1, 2))
    with pytest.raises(SerializationError, match=r"args\[0\].*Stranger has no"):
        agent.look(Stranger("x"))  # found here, before anything is sent


def test_a_proxy_of_a_loaded_class_knows_the_classes_of_its_annotations_wherever_it_comes_from(shop: RpcClient) -> None:
    agent = shop.create_agent(Shop)
    shop.create_agent(Shop).remember(agent)
    for proxy in (
        shop.get_agent(agent.agent_id), shop.create_agent(f"{__name__}:Shop"), agent.back(agent),
        pickle.loads(pickle.dumps(agent)), agent.take_shop(agent), agent.shops([agent])["first"][0],
    ):  # fmt: skip
        assert proxy.take(SENT) == proxy.later(SENT).result() == SENT
        assert list(proxy.each([SENT])) == [SENT]
        with pytest.raises(SerializationError, match="result is an Order"):
            proxy.anything()


def test_an_agent_knows_the_classes_of_the_proxies_that_it_gets(shop: RpcClient) -> None:
    assert shop.create_agent(Shop).ask(shop.create_agent(Shop), SENT) == "Order"


def test_a_proxy_that_does_not_know_the_class_of_its_agent_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "booths.py").write_text(AGENTS)
    with client_on_host(agent_dir=str(tmp_path)) as client:
        booth = client.create_agent("Booth")
        with pytest.raises(SerializationError, match="result is a Ticket"):
            booth.made()
        with pytest.raises(SerializationError, match="result is a Ticket"):
            list(booth.some())
        with pytest.raises(SerializationError, match="result is a Ticket"):
            booth.first  # noqa: B018


def test_what_a_client_trusts_is_known_to_the_proxies_and_results_that_it_gets(package: str) -> None:
    from ticketing.parts import Ticket  # type: ignore[import-not-found,unused-ignore]

    with host(Shop, types=[package]) as launcher, client_of(launcher, types=[package]) as client:
        agent: Any = client.create_agent(Shop)
        assert agent.back(agent).back([Ticket(1)]) == [Ticket(1)]
        assert agent.relay(client.create_agent(Shop), Ticket(2))[0].result() == Ticket(2)
        with client_of(launcher) as other, pytest.raises(SerializationError, match="does not know"):
            other.get_agent(agent.agent_id).back(agent).back(Ticket(1))


def test_an_attribute_is_of_the_class_that_its_annotation_names(shop: RpcClient) -> None:
    agent = shop.create_agent(Shop, SENT)
    assert (agent.newest, agent.total, agent.spot) == (SENT, Order([]), Spot(1, 2))
    with pytest.raises(SerializationError, match="result is an Order"):
        agent.first  # noqa: B018  # what __init__ annotates cannot be read
    assert agent.plain_newest["note"] == "soon"


def test_an_awaited_attribute_is_of_the_class_that_its_annotation_names(shop: RpcClient) -> None:
    agent_id = shop.create_agent(Shop, SENT).agent_id

    async def read() -> tuple[Any, Any]:
        async with AsyncRpcClient("localhost", int(shop.address.rpartition(":")[2])) as client:
            agent = await client.get_agent(agent_id, Shop)
            return await agent.newest, await agent.spot

    assert asyncio.run(read()) == (SENT, Spot(1, 2))


@pytest.mark.parametrize("kind", [Stall, NamedStall, Stand])
def test_the_fields_of_an_agent_are_the_annotations_of_its_constructor(stalls: RpcClient, kind: Any) -> None:
    for agent in (stalls.create_agent(kind, order=SENT, info={"n": 1}), stalls.create_agent(kind, order=Rushed([]))):
        assert isinstance(agent.order, Order)
        assert agent.kind_of_order() in ("Order", "Rushed")
    plain = stalls.create_agent(kind, order=SENT, info=Label("bolt"))
    assert plain.info["name"] == "bolt"
    with pytest.raises(SerializationError, match=r"kwargs\['other'\] is a Spot"):
        stalls.create_agent(kind, order=SENT, other=Spot(1, 2))


def test_an_annotation_of_dict_or_list_asks_for_the_plain_form(shop: RpcClient) -> None:
    agent: Any = shop.create_agent(Shop)
    kind, order, spot = agent.plainly(SENT, Spot(1, 2))
    assert (kind, spot) == ("dict", "tuple")
    assert order["note"] == "soon"
    assert [item["name"] for item in order["items"]] == ["bolt", "nut"]


def test_a_client_may_ask_for_the_plain_form(shop: RpcClient) -> None:
    agent_id = shop.create_agent(Shop).agent_id
    with RpcClient("localhost", int(shop.address.rpartition(":")[2]), plain_types=True) as client:
        assert client.get_agent(agent_id).anything()["note"] == "soon"
        assert client.get_agent(agent_id).later(SENT).result() == SENT


def test_a_host_may_ask_for_the_plain_form() -> None:
    with client_on_host(Shop, plain_types=True) as client:
        agent = client.create_agent(Shop)
        assert agent.look(SENT) == "dict"
        assert agent.take(SENT) == SENT


def test_a_registered_class_is_known_on_both_sides_however_the_host_is_started() -> None:
    register_type(Order)  # and so are the classes of its fields
    register_type(Shipment)
    register_type(Stranger, to_data=lambda stranger: stranger.text, from_data=Stranger)
    assert issubclass(register_type(Odd), Exception)
    with client_on_host(Shop, start_method="fresh") as client:
        agent = client.create_agent(Shop)
        for sent in (SENT, Rushed([]), Shipment(order=[SENT], spot=Spot(1, 2)), Stranger("x")):
            got = agent.back([sent])[0]
            assert (type(got), got) == (type(sent), sent)
        assert agent.stranger("y") == Stranger("y")
        with pytest.raises(Odd) as caught:
            agent.fail(SENT)
        assert isinstance(caught.value, AgentCallError)
        assert (caught.value.code, caught.value.order) == (7, SENT)


PROGRAM = """
import dataclasses, json, sys
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, register_type

@register_type
@dataclasses.dataclass
class Order:
    n: int

class Shop(AgentBase):
    def back(self, value):
        assert type(value).__name__ == "Order", value
        return value

if __name__ == "__main__":
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Shop], local_mode=True, start_method=sys.argv[1])
    with launcher, RpcClient(launcher.host, launcher.port) as client:
        print(json.dumps(client.create_agent(Shop).back(Order(3)) == Order(3)))
"""


@pytest.mark.parametrize("method", ["fork", "fresh"])
def test_a_class_of_a_program_is_known_to_its_host(method: str) -> None:
    assert output_of(PROGRAM, method) is True


ANNOTATED = """
from __future__ import annotations
import dataclasses, json, sys
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient

@dataclasses.dataclass
class Item:
    n: int

@dataclasses.dataclass
class Order:
    items: list[Item]

class Shop(AgentBase):
    def take(self, order: Order) -> Order:
        return order

if __name__ == "__main__":
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Shop], local_mode=True, start_method=sys.argv[1])
    with launcher, RpcClient(launcher.host, launcher.port) as client:
        print(json.dumps(client.create_agent(Shop).take(Order([Item(3)])) == Order([Item(3)])))
"""


@pytest.mark.parametrize("method", ["fork", "fresh"])
def test_a_class_that_an_annotation_of_a_program_names_as_text_is_known_to_its_host(method: str) -> None:
    assert output_of(ANNOTATED, method) is True


def test_a_registration_that_cannot_travel_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()
    register_type(Stranger, to_data=lambda stranger: (lock, stranger.text)[1], from_data=Stranger)
    register_type(Order)
    with client_on_host(Shop, start_method="fresh") as client:
        assert client.create_agent(Shop).back(SENT) == SENT
    assert "will not know" in caplog.text
    assert "Stranger" in caplog.text


# ---------------------------------------------------------------- agent files

AGENTS = """
import dataclasses, functools
from zmqagents import AgentBase, register_exception, register_type

@dataclasses.dataclass
class Ticket:
    n: int

@register_type
class Note(str):
    pass

@register_exception
class Torn(Exception):
    def __init__(self, n):
        super().__init__(n)
        self.n = n

class Booth(AgentBase):
    def sell(self, ticket: Ticket) -> Ticket:
        assert isinstance(ticket, Ticket), ticket
        return ticket

    def note(self, note):
        assert type(note) is Note, note
        return note

    first: Ticket = Ticket(1)

    def made(self) -> Ticket:
        return Ticket(2)

    def some(self):
        yield Ticket(3)

    def tear(self, ticket: Ticket) -> None:
        raise Torn(ticket.n)

    def _swap(self, old: Ticket, new: Ticket) -> Ticket:
        return new if isinstance(old, Ticket) else old

    swap_first = functools.partialmethod(_swap, Ticket(1))

    @functools.singledispatchmethod
    def kind(self, value) -> str:
        return "unknown"

    @kind.register
    def _(self, value: Ticket) -> str:
        return f"ticket {value.n}"
"""


def test_a_class_of_an_agent_file_is_the_same_for_a_client_that_imports_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "booths.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    booths = importlib.import_module("booths")
    try:
        with client_on_host(agent_dir=str(tmp_path)) as client:
            booth = client.create_agent(booths.Booth)
            for proxy in (booth, client.get_agent(booth.agent_id), pickle.loads(pickle.dumps(booth))):
                assert (proxy.sell(booths.Ticket(3)), proxy.made()) == (booths.Ticket(3), booths.Ticket(2))
            assert booth.swap_first(booths.Ticket(4)) == booths.Ticket(4)
            assert booth.kind(booths.Ticket(5)) == "ticket 5"
            assert booth.kind(6) == "unknown"
            got = booth.note(booths.Note("x"))
            assert (type(got), got) == (booths.Note, "x")
            with pytest.raises(booths.Torn) as caught:
                booth.tear(booths.Ticket(7))
            assert caught.value.n == 7
    finally:
        del sys.modules["booths"]


# ---------------------------------------------------------------- trusted packages

MODULE = """
import dataclasses
class Mine(Exception):
    pass
@dataclasses.dataclass
class Ticket:
    n: int
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ticketing").mkdir()
    (tmp_path / "ticketing" / "__init__.py").write_text("")
    (tmp_path / "ticketing" / "parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "ticketing"
    for name in [name for name in sys.modules if name.partition(".")[0] == "ticketing"]:
        del sys.modules[name]


def test_a_trusted_package_is_imported_by_the_host_and_no_other_is(package: str) -> None:
    from ticketing.parts import Ticket  # type: ignore[import-not-found,unused-ignore]

    with host(Shop, types=[package]) as launcher, client_of(launcher, types=[package]) as client:
        agent = client.create_agent(Shop)
        assert agent.look(Ticket(1)) == "Ticket"
        assert agent.back([Ticket(1)]) == [Ticket(1)]
        with pytest.raises(SerializationError, match="does not know"):
            agent.look(Spot(1, 2))
        with client_of(launcher) as other, pytest.raises(SerializationError, match="result"):
            other.get_agent(agent.agent_id).back(Ticket(1))
    with client_on_host(Shop) as client, pytest.raises(SerializationError, match="--types ticketing"):
        client.create_agent(Shop).look(Ticket(1))


def test_what_this_process_trusts_a_host_that_it_starts_trusts_as_well(package: str) -> None:
    from ticketing.parts import Ticket  # type: ignore[import-not-found,unused-ignore]

    trust_types(package)
    with client_on_host(Shop, start_method="fresh") as client:
        assert client.create_agent(Shop).back(Ticket(1)) == Ticket(1)


def test_types_of_a_module_are_registered_together(package: str) -> None:
    from ticketing import parts  # type: ignore[import-not-found,unused-ignore]

    assert register_types(parts) == [parts.Mine, parts.Ticket]
    with client_on_host(Shop, start_method="fresh") as client:
        assert client.create_agent(Shop).back(parts.Ticket(1)) == parts.Ticket(1)


def test_types_are_named_by_their_packages() -> None:
    for wrong in ("a b", "x;y", 3, [1]):
        with pytest.raises(errors.ConfigError, match="types are"):
            RpcClient("localhost", 1, types=wrong)  # type: ignore[arg-type]
        with pytest.raises(errors.ConfigError, match="types are"):
            RpcAgentServerLauncher(types=wrong)


# ---------------------------------------------------------------- the private host


@pytest.mark.usefixtures("private")
def test_on_a_private_host_everything_arrives_as_it_is() -> None:
    agent = Shop(SENT).to_dist()
    shipment = Shipment(order=Rushed([Item("x")]), spot=Spot(1, 2))
    for sent in (SENT, shipment, Spot(1, 2), Grade.FINE, {"a": (Spot(1, 2), SENT)}):
        got = agent.back([sent])[0]
        assert (type(got), got) == (type(sent), sent)
    assert agent.anything() == SENT
    assert agent.kept() == SENT
    assert agent.later(SENT).result() == SENT


@pytest.mark.usefixtures("private")
def test_on_a_private_host_an_exception_keeps_class_arguments_and_attributes() -> None:
    agent = Shop().to_dist()
    with pytest.raises(Odd) as caught:
        agent.fail(SENT)
    assert isinstance(caught.value, AgentCallError)
    assert (caught.value.code, caught.value.order) == (7, SENT)
    got = agent.back(Odd(3, SENT))
    assert (type(got), got.code, got.order) == (Odd, 3, SENT)


# ---------------------------------------------------------------- other clients


def shell(*words: str) -> tuple[int, str]:
    """Exit status and output of a verb."""
    done = subprocess.run([sys.executable, "-m", "zmqagents", *words], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_shell_prints_the_plain_form_or_that_of_named_types(package: str, shop: RpcClient) -> None:
    from ticketing.parts import Ticket  # type: ignore[import-not-found,unused-ignore]

    register_type(Ticket)  # for the argument of this process; the host has it with its settings
    with host(Shop, types=[package]) as launcher, client_of(launcher) as client:
        agent = client.create_agent(Shop, agent_id="shop")
        agent.remember(Ticket(3))
        call = ("call", "shop", "remembered", "--json", "--port", str(launcher.port))
        assert shell(*call) == (0, '{"n": 3}\n')
        status, said = shell(*call, "--no-plain-types")
        assert status == 1
        assert "result is a Ticket, which the receiving side does not know" in said
        assert shell(*call, "--no-plain-types", "--types", package)[0] == 1  # this shell cannot import it


async def _round(address: str) -> list[Any]:
    async with AsyncRpcClient("localhost", int(address.rpartition(":")[2])) as client:
        agent = await client.create_agent(Shop, SENT)
        return [await agent.take(SENT), await agent.kept(), [order async for order in agent.each([SENT])]]


def test_an_asyncio_client_knows_the_annotated_classes_too(shop: RpcClient) -> None:
    import asyncio

    assert asyncio.run(_round(shop.address)) == [SENT, SENT, [SENT]]
