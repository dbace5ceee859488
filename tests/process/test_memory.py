"""When the allocator is asked to give memory back: by a clock, a memory and an allocator that the tests move."""

from __future__ import annotations

from scale import MIB
from zmqagents.process import memory
from zmqagents.process.memory import GROWN_BYTES, LONGEST_S, WORTH_BYTES, Trimmer


class Process:
    """``free`` of its ``resident`` bytes go at a trim."""

    def __init__(self) -> None:
        self.now = 0.0
        self.resident = 30 * MIB
        self.free = 0
        self.trims: list[float] = []
        self.trimmer = Trimmer(clock=lambda: self.now, resident=lambda: self.resident, trim=self._trim)

    def _trim(self) -> None:
        self.trims.append(self.now)
        self.resident -= self.free
        self.free = 0

    def flood(self, size: int) -> None:
        self.resident += size
        self.free += size

    def pass_time(self, seconds: float) -> None:
        """With a look every 10 s."""
        end = self.now + seconds
        while self.now < end:
            self.trimmer.look()
            self.now += 10


def test_a_process_that_has_not_grown_is_left_alone() -> None:
    process = Process()
    process.flood(GROWN_BYTES - 1)
    process.pass_time(100)
    assert process.trims == []


def test_what_a_flood_has_left_goes_at_the_next_look_and_so_does_that_of_the_next_flood() -> None:
    process = Process()
    for _ in range(3):
        process.flood(300 * MIB)
        process.pass_time(10)
        assert process.resident == 30 * MIB
    assert process.trims == [0, 10, 20]


def test_a_process_that_needs_its_memory_is_trimmed_more_and_more_rarely() -> None:
    process = Process()
    process.resident += 500 * MIB  # in use: a trim gives nothing back
    process.pass_time(7200)
    pauses = [later - sooner for sooner, later in zip(process.trims, process.trims[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_S
    process.flood(WORTH_BYTES)
    process.pass_time(LONGEST_S)
    process.flood(WORTH_BYTES)
    process.pass_time(60)
    assert process.free == 0  # one that was worth it makes the next ones come soon


def test_the_memory_is_looked_at_again_when_the_last_look_is_old() -> None:
    now, looks = [5.0], []

    def look() -> int:
        looks.append(now[0])
        return 10 * len(looks)

    resident = memory.Resident(lambda: now[0], look)
    assert [resident.bytes(), resident.bytes()] == [10, 10]
    now[0] += memory.KEPT_S
    assert resident.bytes() == 20
    assert looks == [5.0, 5.0 + memory.KEPT_S]


def test_the_memory_of_a_process_that_is_not_there_is_none() -> None:
    assert memory.resident_bytes() > 1 << 20
    assert memory.resident_bytes(2**22 + 1) == 0
