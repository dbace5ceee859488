"""The live stream: the host is asked while somebody reads, and otherwise never."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any, cast

from host_figures import figures
from zmqagents.telemetry.meters import MAX_PAIRS
from zmqagents.web.hosts import live
from zmqagents.web.hosts.live import Live
from zmqagents.web.hosts.watcher import Watcher


class Host:
    """Stands in for the `Watcher` of a host."""

    name = "h1"

    def __init__(self, methods: int = 2) -> None:
        self.told: dict[str, Any] | None = {**figures(methods), "uptime_s": 5.0, "pid": 1}
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def figures(self) -> dict[str, Any] | None:
        self.asked += 1
        self.may_answer.wait(30)
        return self.told


def live_of(host: Host) -> Live:
    return Live(cast(Watcher, host))


async def ticks(stream: Any, count: int) -> list[dict[str, Any]]:
    found = []
    async for text in stream:
        if text.startswith("data: "):
            found.append(json.loads(text[6:]))
            if len(found) == count:
                break
    await stream.aclose()
    return found


def test_a_host_is_asked_once_for_all_readers_and_not_at_all_without_one() -> None:
    async def story() -> None:
        host = Host()
        pages = live_of(host)
        await asyncio.sleep(0.05)
        assert host.asked == 0
        read = await asyncio.gather(*(ticks(pages.stream(lambda: True), 2) for _ in range(3)))
        assert host.asked <= 3
        assert {tick["hosts"][0]["up"] for each in read for tick in each} == {True}
        await asyncio.sleep(live.EVERY_S * 1.5)
        asked = host.asked
        await asyncio.sleep(live.EVERY_S * 2)
        assert host.asked == asked

    asyncio.run(story())


def test_a_host_that_does_not_answer_is_down_and_is_asked_no_second_question_meanwhile() -> None:
    async def story() -> None:
        host = Host()
        pages = live_of(host)
        (up,) = await ticks(pages.stream(lambda: True), 1)
        host.may_answer.clear()
        asked = host.asked
        seen = await ticks(pages.stream(lambda: True), 4)
        host.may_answer.set()
        assert up["hosts"][0]["up"]
        assert not seen[-1]["hosts"][0]["up"]
        assert host.asked <= asked + 1
        assert seen[-1]["hosts"][0]["capacity"] == 4, "the figures of then"

    asyncio.run(story())


def test_who_may_read_no_more_is_told_no_more() -> None:
    async def story() -> None:
        allowed = [True, True, False]
        stream = live_of(Host()).stream(lambda: allowed.pop(0))
        assert len([text async for text in stream if text.startswith("data")]) == 2

    asyncio.run(story())


def test_a_tick_of_a_full_host_has_eight_kilobytes_at_most() -> None:
    async def story() -> None:
        host = Host(MAX_PAIRS)
        (tick,) = await ticks(live_of(host).stream(lambda: True), 1)
        assert len(json.dumps(tick)) < 8192
        assert tick["hosts"][0]["methods_total"] == MAX_PAIRS

    asyncio.run(story())
