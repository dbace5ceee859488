"""What is measured and what is bounded: the cases, and the budgets that the design gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .driver import ENCRYPTED_PEERS, PEERS

Mode = Literal["pinned", "free"]
MODES: tuple[Mode, ...] = ("pinned", "free")
TRANSPORTS = ("ipc", "tcp", "curve")


class Case(NamedTuple):
    """A script in `cases`, and how it is run."""

    script: str
    title: str
    modes: tuple[Mode, ...] = ("free",)
    every_transport: bool = False  # False: only over the first one that is asked for
    floors: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    floor: str = ""  # the one that figures are compared with from run to run


CASES: dict[str, Case] = {
    "B1": Case("b01_sync_call", "blocking calls", MODES, True, ("echo", "workers"), PEERS, "echo"),
    "B2": Case("b02_pipelined", "256 calls in flight", MODES, True, ("echo", "workers", "tight"), PEERS, "workers"),
    "B3": Case("b03_clients", "clients at once", MODES, True, ("echo", "workers", "tight"), PEERS, "workers"),
    "B4": Case("b04_large", "large payloads", ("free",), True, ("echo", "raw"), PEERS, "echo"),
    "B4a": Case("b04a_sizes", "values by size", ("free",), False, ("pipe",), ("pyro5", "rpyc"), "pipe"),
    "B5": Case("b05_sleepers", "32 agents sleep 0.5 s", peers=PEERS),
    "B6": Case("b06_long_method", "a method of 6 s", peers=PEERS),
    "B7": Case("b07_many_agents", "10,000 agents"),
    "B8": Case("b08_flat_cost", "cost against size", ("pinned",)),
    "B9": Case("b09_busy_host", "8 threads burn CPU"),
    "B10": Case("b10_start", "start"),
    "B11": Case("b11_coroutines", "10,000 coroutines sleep 1 s"),
    "B12": Case("b12_results", "10,000 results"),
    "B13": Case("b13_children", "agents in children"),
    "B14": Case("b14_child_life", "the life of a child"),
    "B15": Case("b15_stack", "tables and tensors"),
    "B16": Case("b16_crowd", "200 clients at once", ("free",), True, ("echo", "workers"), ENCRYPTED_PEERS, "workers"),
}

ANY_PEER = "peers"  # the best of them


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound on one figure of ours: ``limit`` must hold, ``reach`` is hoped for.

    ``over``: the figure is divided by that of this subject in the same round. ``beside``: shown, not judged. ``name``:
    what the budget is called, if not as its case.
    """

    case: str
    what: str
    figure: str
    limit: float
    reach: float
    over: str = ""
    at_most: bool = True
    mode: Mode = "free"
    transport: str = "ipc"
    point: int | None = None
    beside: bool = False
    name: str = ""

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def is_reached(self, value: float) -> bool:
        return value <= self.reach if self.at_most else value >= self.reach

    @property
    def sign(self) -> str:
        return "≤" if self.at_most else "≥"


def _more(case: str, what: str, limit: float, reach: float, *, figure: str = "calls_per_s", **where: object) -> Budget:
    return Budget(case, what, figure, limit, reach, at_most=False, **where)  # type: ignore[arg-type]


_ENCRYPTED_CALL: dict[str, Any] = {"transport": "curve", "name": "1c"}
_ENCRYPTED_CLIENTS: dict[str, Any] = {"transport": "curve", "point": 8, "name": "3c"}

BUDGETS = (
    *(
        Budget("B1", f"{what} p50, {mode}", figure, limit, reach, over, mode=mode)
        for what, figure in (("sync call", "p50_us"), ("the same of a dict", "dict_p50_us"))
        for mode in MODES
        for over, limit, reach in (("echo", 1.2, 1.0), (ANY_PEER, 1.0, 0.8))
    ),
    _more("B2", "pipelined calls/s", 0.5, 0.7, over="workers"),
    _more("B2", "pipelined calls/s, pinned", 0.5, 0.7, over="workers", mode="pinned", beside=True),
    _more("B2", "pipelined calls/s", 1.5, 2.0, over=ANY_PEER),
    _more("B3", "8 clients, calls/s", 1.0, 1.3, over="workers", point=8),
    _more("B3", "8 clients, calls/s, pinned", 1.0, 1.3, over="workers", point=8, mode="pinned", beside=True),
    _more("B3", "8 clients, calls/s", 1.15, 1.5, over=ANY_PEER, point=8),
    Budget("B1", "sync call p50, pinned", "p50_us", 1.4, 1.2, "echo", mode="pinned", **_ENCRYPTED_CALL),
    Budget("B1", "sync call p50, free", "p50_us", 1.4, 1.2, "echo", **_ENCRYPTED_CALL),
    Budget("B1", "sync call p50, pinned", "p50_us", 1.25, 1.0, ANY_PEER, mode="pinned", **_ENCRYPTED_CALL),
    Budget("B1", "sync call p50, free", "p50_us", 1.25, 1.0, ANY_PEER, **_ENCRYPTED_CALL),
    _more("B3", "8 clients, calls/s", 0.7, 0.9, over="workers", **_ENCRYPTED_CLIENTS),
    _more("B3", "8 clients, calls/s", 0.7, 0.9, over="echo", beside=True, **_ENCRYPTED_CLIENTS),
    _more("B3", "8 clients, calls/s", 1.0, 1.5, over=ANY_PEER, **_ENCRYPTED_CLIENTS),
    _more("B4", "1 MiB echo, ipc", 0.8, 1.0, figure="mb_per_s", over="echo", point=1),
    _more("B4", "16 MiB echo, ipc", 0.8, 1.0, figure="mb_per_s", over="echo", point=16),
    _more("B4", "1 MiB echo, TCP + CURVE", 0.8, 1.0, figure="mb_per_s", over="echo", point=1, transport="curve"),
    _more("B4", "16 MiB echo, TCP + CURVE", 0.8, 1.0, figure="mb_per_s", over="echo", point=16, transport="curve"),
    *(
        _more("B4a", f"{size} KiB {way}", limit, 0.8, figure=f"{way}_mb_per_s", over="pipe", point=size)
        for size, limit in ((64, 0.4), (256, 0.5), (1024, 0.5), (4096, 0.5), (16384, 0.5))
        for way in ("echo",)
    ),
    *(
        _more(
            "B4a",
            f"{size} KiB {way}",
            2.0 if size == 16384 and way == "echo" else 1.0,
            2.0,
            figure=f"{way}_mb_per_s",
            over=ANY_PEER,
            point=size,
        )
        for size in (64, 256, 1024, 4096, 16384)
        for way in ("echo", "send", "receive")
    ),
    Budget("B5", "32 agents × sleep(0.5), s", "wall_s", 0.55, 0.51),
    Budget("B6", "worst delay after a 6 s method, ms", "worst_delay_ms", 20, 5),
    _more("B7", "agents made per second", 7_000, 10_000, figure="agents_per_s"),
    Budget("B7", "bytes for each agent", "bytes_each", 512, 400),
    Budget("B8", "cost: 10,000 agents / 10", "agents_cost_ratio", 1.3, 1.1, mode="pinned"),
    Budget("B8", "cost: 100,000 results / 0", "results_cost_ratio", 1.3, 1.1, mode="pinned"),
    Budget("B8", "cost: 200 clients / 1", "clients_cost_ratio", 1.3, 1.1, mode="pinned"),
    Budget("B9", "ping p99 beside 8 burners, ms", "ping_p99_ms", 40, 10),
    Budget("B10", "start to first answer, s", "start_s", 0.5, 0.25),
    Budget("B10", "idle memory, MiB", "idle_mib", 45, 30),
    Budget("B11", "10,000 async sleeps of 1 s, s", "wall_s", 3.0, 1.5),
    _more("B12", "results made per second", 8_000, 20_000, figure="made_per_s"),
    _more("B12", "results collected per second", 8_000, 20_000, figure="collected_per_s"),
    _more("B13", "two children / two bare processes", 0.95, 1.0, figure="of_bare"),
    Budget("B13", "ping p99 beside 8 burners in 2 children, ms", "ping_p99_ms", 10, 5),
    Budget("B13", "the same in 8 children, ms", "ping_p99_8_ms", 20, 10),
    Budget("B13", "a call of 64 bytes: child - thread, µs", "hop_us", 150, 100),
    Budget("B13", "an argument of 1 MiB: child - thread, µs", "hop_mib_us", 600, 400),
    Budget("B14", "start of a child to the first answer, ms", "start_ms", 250, 150),
    Budget("B14", "memory of an idle child, MiB", "idle_mib", 30, 20),
    _more("B14", "agents made per second in a warm child, by two callers", 3_000, 5_000, figure="create_per_s"),
    _more("B14", "the same by one, who waits for each", 2_000, 3_000, figure="create_alone_per_s"),
    Budget("B14", "child killed: until calls are told, worst of 5, ms", "told_ms", 100, 20),
    Budget("B14", "child killed: until agents are back, worst of 5, ms", "back_ms", 500, 100),
    Budget("B14", "killed again as soon as they are back: the same, ms", "back_at_once_ms", 500, 300),
    *(
        _more(
            "B16",
            f"200 clients, least served / mean, {name}",
            0.5,
            0.8,
            figure="least_served_ratio",
            transport=transport,
        )
        for name, transport in (("ipc", "ipc"), ("TCP + CURVE", "curve"))
    ),
    _more("B15", "DataFrame of 1 M cells / ndarray", 0.5, 0.9, figure="pandas_ratio"),
    _more("B15", "Arrow table of 16 MiB / ndarray", 0.5, 0.9, figure="arrow_ratio"),
    _more("B15", "torch tensor of 16 MiB / ndarray", 0.5, 0.9, figure="torch_ratio"),
)
