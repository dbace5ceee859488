"""The page of ``as_server web`` in a real browser, on a host under load with 10,000 agents.

Run by ``make test-web``. With ``ZMQAGENTS_PICTURES=DIR`` the pictures of every page are written there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import library
from browsing import CHROMIUM, KINDS, LIMIT_MS, LIMIT_S, PICTURES, looking, picture, program
from hosts import eventually, free_port
from zmqagents import CallCancelled, RpcClient

pytestmark = [
    pytest.mark.program, pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]  # fmt: skip

AGENTS = 10_000
HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass
class House:
    """A host under load, and the web process that shows it."""

    port: int
    link: str
    view: str

    @property
    def url(self) -> str:
        return self.link.partition("/#")[0]

    def client(self) -> RpcClient:
        return RpcClient("localhost", self.port, timeout=20 * LIMIT_S)


def start(*words: str) -> contextlib.AbstractContextManager[tuple[dict[str, Any], subprocess.Popen[str]]]:
    place = Path(library.__file__).parent
    if PICTURES:  # which show where it is
        place = Path(tempfile.gettempdir(), "shelf")
        place.mkdir(exist_ok=True)
        shutil.copy(library.__file__, place)
    return program(
        "start", "library:Reader", "--app-dir", str(place), "--server-id", "library", "--local-mode", "--grace", "0.2",
        "--max-agents", str(2 * AGENTS), *words,
    )  # fmt: skip


def work(house: House, over: threading.Event) -> None:
    """Keep the host busy."""
    with house.client() as client:
        echo, load = client.get_agent("agent-1"), client.get_agent("agent-2")
        while not over.wait(0.005):
            for number in range(10):
                echo.echo(number)
            with contextlib.suppress(ValueError):
                load.load("page 7")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """The host has 10,000 agents, calls a second, and calls that wait for others."""
    over = threading.Event()
    with start("--port", "0", "--web", "0") as (told, _):
        command = [sys.executable, "-m", "zmqagents", "web", "--url", "--role", "view"]
        view = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        house = House(told["port"], told["web"], view)
        with house.client() as client:
            for number in range(AGENTS - 1):
                client.create_agent("Reader", agent_id=f"agent-{number}")
            client.create_agent("Reader", agent_id=HOSTILE)
            held = client.get_agent("agent-10")
            waiting = [
                held.hold(), client.get_agent("agent-11").ask(held), client.get_agent("agent-12").ask(held),
                client.get_agent(HOSTILE).hold(),
            ]  # fmt: skip
            busy = threading.Thread(target=work, args=(house, over))
            busy.start()
            try:
                yield house
            finally:
                over.set()
                busy.join()
                for result in waiting:
                    result.cancel()


PAGES = {
    "overview": "/", "agents": "/agents?sort=queued", "agent": "/agent?id=agent-10", "calls": "/calls",
    "graph": "/graph", "charts": "/charts", "errors": "/errors", "logs": "/logs", "results": "/results",
    "host": "/host", "keys": "/keys",
}  # fmt: skip
SHOWN = {
    "overview": "Busiest methods", "agents": "10,000 agents", "agent": "Wait until the call is cancelled.",
    "calls": "agent-11", "graph": "waiting ·", "charts": "Processor", "errors": "ValueError", "logs": "is made",
    "results": "pending", "host": "max_agents", "keys": "self", "call": "Waited for by",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_shows_the_host_and_asks_nobody_else(house: House, kind: str) -> None:
    with house.client() as client, looking(house.link, **KINDS[kind]) as look:
        call = next(row["task_id"] for row in client.get_call_list() if row["agent"] == "agent-11")
        look.sees("Busiest methods")
        if PICTURES:
            time.sleep(12 if kind == "light" else 3)  # for the charts to have something to show
        for name, path in {**PAGES, "call": f"/call?id={call}"}.items():
            look.go(path)
            look.sees(SHOWN[name])
            width = look.page.evaluate("document.documentElement.scrollWidth")
            assert width <= (400 if kind == "narrow" else 1100), f"{name} is {width} pixels wide"
            if PICTURES:
                time.sleep(0.5)
                picture(look, Path(PICTURES) / f"page-{name}-{kind}.png")
        assert look.said == []
        assert {url.split("/", 3)[2] for url in look.asked} == {house.url.split("/", 3)[2]}
        assert "#" not in look.page.url, "the token is gone from the address"
        assert [url for url in look.asked if house.link.partition("=")[2] in url] == []


def test_live_figures_move(house: House) -> None:
    with looking(house.link) as look:
        place = look.page.locator("[data-live=calls]")
        place.wait_for(timeout=LIMIT_MS)
        seen: set[str] = set()

        def moved() -> bool:
            seen.add(place.inner_text())
            look.page.wait_for_timeout(100)
            return len(seen - {"0"}) >= 3

        assert eventually(moved, LIMIT_S), seen
        assert look.page.locator("canvas").count() == 2


def test_a_search_finds_one_of_ten_thousand_agents(house: House) -> None:
    with looking(house.link) as look:
        look.go("/agents")
        look.sees("50 shown of 10,000 agents")
        look.page.keyboard.press("/")
        look.page.keyboard.type("agent-9876")
        look.sees("1 shown of 10,000 agents")
        assert "q=agent-9876" in look.page.url
        look.page.get_by_role("link", name="agent-9876").click()
        look.sees("Give the value back.")
        look.page.go_back()
        look.sees("1 shown of 10,000 agents")


def test_pages_of_a_list_follow_each_other(house: House) -> None:
    with looking(house.link) as look:
        look.go("/agents")
        look.page.get_by_role("link", name="agent-49", exact=True).wait_for(timeout=LIMIT_MS)
        look.page.get_by_role("link", name="next ▸").click()
        look.page.get_by_role("link", name="agent-50", exact=True).wait_for(timeout=LIMIT_MS)
        assert look.page.get_by_role("link", name="agent-49", exact=True).count() == 0


def test_a_cancel_from_the_page_ends_a_call_and_is_a_line_of_the_log(house: House) -> None:
    with house.client() as client, looking(house.link) as look:
        held = client.get_agent("agent-77").hold()
        look.go("/calls?agent=agent-77")
        look.sees("3 of 10 pages")
        look.page.get_by_role("link", name=f"…{held.task_id[-8:]}").click()
        look.sees("wait_cancelled")  # the stack of its code
        look.sees("3 of 10 pages")
        look.page.get_by_role("button", name="Cancel…").click()
        look.page.get_by_role("button", name="Cancel", exact=True).click()
        look.sees(re.compile("^cancelled"))
        with pytest.raises(CallCancelled):
            held.result(LIMIT_S)
        look.sees("This call is not open")
        look.go("/logs?q=cancel_call")
        look.sees(f"cancel_call {held.task_id} by uid:")


def test_an_agent_is_deleted_only_when_its_name_was_typed(house: House) -> None:
    with house.client() as client, looking(house.link) as look:
        client.create_agent("Reader", agent_id="doomed")
        look.go("/agent?id=doomed")
        look.page.get_by_role("button", name="Delete…").click()
        button = look.page.get_by_role("button", name="Delete", exact=True)
        assert button.is_disabled()
        look.page.get_by_label("Type doomed").fill("doomed")
        button.click()
        look.sees("doomed is deleted")
        assert eventually(lambda: "doomed" not in {row["agent_id"] for row in client.get_agent_list()}, LIMIT_S)


def test_hostile_names_are_text(house: House) -> None:
    with looking(house.link) as look:
        look.go("/agents?q=onerror")
        look.page.get_by_role("link", name=HOSTILE).click()
        look.sees("Wait until the call is cancelled.")
        look.go("/calls")
        look.sees(HOSTILE)
        look.go("/errors")
        look.sees(re.compile("<b>page 7</b> is not there"))
        assert look.page.locator("main img, main b b").count() == 0
        assert look.said == []


def test_a_wrong_token_sees_nothing(house: House) -> None:
    with looking(f"{house.url}/#token=wrong") as look:
        look.sees("the token of this link counts no more")
        assert "library" not in look.page.content()
        assert look.page.locator("nav").count() == 0
        look.page.get_by_label("token").fill("wrong too")
        look.page.get_by_role("button", name="look").click()
        look.sees("this token stands for nobody here")
        look.page.get_by_label("token").fill(house.view.partition("=")[2])
        look.page.get_by_role("button", name="look").click()
        look.sees("Busiest methods")
        look.page.get_by_role("button", name="leave").click()
        look.sees("This page needs a token")


def test_who_only_looks_finds_no_buttons_that_change_and_may_not_do_so_by_hand(house: House) -> None:
    with house.client() as client, looking(house.view) as look:
        look.sees("link (view)")
        task = next(row["task_id"] for row in client.get_call_list() if row["agent"] == "agent-11")
        look.go("/calls")
        look.page.get_by_role("link", name=re.compile(r"\.\.-\d+$")).first.click()
        look.sees("agent.method")
        assert task.partition("-")[0] not in look.page.content()
        for path in ("/host", "/agent?id=agent-10"):
            look.go(path)
            look.page.get_by_role("button", name="copy as").first.wait_for(timeout=LIMIT_MS)
            assert look.page.locator("button.danger").count() == 0
        status = look.page.evaluate(
            "async id => (await fetch('/api/cancel', {method: 'POST', headers: {'content-type': 'application/json'},"
            " body: JSON.stringify({id})})).status", task,
        )  # fmt: skip
        assert status == 403
        assert task in {row["task_id"] for row in client.get_call_list()}


def test_the_keyboard_alone_leads_everywhere(house: House) -> None:
    with looking(house.link) as look:
        look.sees("Busiest methods")
        names = []
        for _ in range(14):
            look.page.keyboard.press("Tab")
            names.append(look.page.evaluate("document.activeElement.innerText"))
        for page in ("Agents", "Calls", "Waits", "Charts", "Errors", "Logs", "Results", "Host", "Keys"):
            assert page in names
        look.page.keyboard.press("Shift+Tab")
        look.page.keyboard.press("Enter")
        look.page.locator("h1").first.wait_for(timeout=LIMIT_MS)
        assert look.page.url != f"{house.url}/"


def test_a_host_that_dies_is_shown_so_within_two_seconds_and_its_return_too() -> None:
    port, took = free_port(), []
    with program("web", "--listen", "0", "--port", str(port)) as (told, _), looking(told["web"]) as look:
        banner = look.page.locator("[data-lost]")
        banner.wait_for(timeout=LIMIT_MS)
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
            with start("--port", str(port), "--server-id", "mortal") as (_, process):
                began = time.monotonic()
                banner.wait_for(state="detached", timeout=LIMIT_MS)
                took.append(time.monotonic() - began)
                began = time.monotonic()
                process.send_signal(number)
                banner.wait_for(timeout=LIMIT_MS)
                took.append(time.monotonic() - began)
                if number == signal.SIGSTOP:
                    process.send_signal(signal.SIGCONT)
                    banner.wait_for(state="detached", timeout=LIMIT_MS)
            look.sees("mortal does not answer")
    assert sorted(took)[len(took) // 2] <= 2.0, took  # others use this machine as well
