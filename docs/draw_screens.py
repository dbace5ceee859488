"""Draw the pictures of the terminal and of a notebook in ``docs/screens``: real output of a real host.

    python docs/draw_screens.py        by hand, when what is shown has changed; needs rich, for the notebook chromium

A command runs on a pseudo-terminal, so that it draws what a user sees. `Screen` follows the few steps of the cursor
that rich takes, and rich makes an SVG of what stands on the screen at the end.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, current_call
from zmqagents.client.many.bar import Seen, as_html

DOCS = Path(__file__).parent
SCREENS = DOCS / "screens"
COLUMNS = 110
TOKENS = re.compile(r"\x1b\[(\d*)A|(\x1b\[2K)|(\r)|(\n)|\x1b\[\?[\d;]*[a-zA-Z]|(\x1b\[[\d;]*m|[^\x1b\r\n]+)")


class Trainer(AgentBase):
    """Fits a model."""

    def fit(self, epochs: int) -> str:
        """Go through the epochs, and tell of each."""
        call = current_call()
        assert call is not None
        for epoch in range(epochs):
            call.progress(epoch, epochs, f"loss {1 / (epoch + 1):.3f}")
            call.wait_cancelled(0.05)
        return "fitted"

    def score(self, n: int) -> int:
        """A short call."""
        return n * n

    def load(self, path: str) -> bytes:
        """Read a file."""
        return Path(path).read_bytes()


class Screen:
    """The lines of a terminal, with their colours."""

    def __init__(self) -> None:
        self._lines: list[str] = [""]
        self._row = 0
        self._fresh = False  # the next word stands at the beginning of its line

    def write(self, text: str) -> None:
        """Take what a program has written."""
        for up, clear, start, newline, word in TOKENS.findall(text):
            if clear:
                self._lines[self._row] = ""
            elif start:
                self._fresh = True
            elif newline:
                self._row, self._fresh = self._row + 1, False
                self._lines += [""] * (self._row + 1 - len(self._lines))
            elif word:
                if self._fresh:
                    self._lines[self._row] = ""
                self._fresh = False
                self._lines[self._row] += word
            else:
                self._row = max(0, self._row - int(up or 1))

    def text(self) -> str:
        """What stands there."""
        return "\n".join(self._lines).rstrip()


def output_of(command: Sequence[str], environment: dict[str, str]) -> str:
    """What a command leaves on a terminal."""
    leader, follower = pty.openpty()
    given = {**os.environ, **environment, "COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    screen, data = Screen(), b""
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=given):
        os.close(follower)
        while True:
            try:
                piece = os.read(leader, 65_536)
            except OSError:  # the program has ended
                break
            data += piece
    os.close(leader)
    screen.write(data.decode().replace("\r\n", "\n"))
    return screen.text()


def draw(name: str, typed: str, output: str) -> None:
    """An SVG of a terminal in which something was typed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {typed}", style="bold"))
    console.print(Text.from_ansi(output))
    svg = console.export_svg(title="zmqagents", unique_id=name)
    (SCREENS / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


def draw_notebook(client: RpcClient, trainer: Any) -> None:
    """A PNG of what a notebook shows for a proxy, a client and a bar."""
    cells = {
        "progress([trainer.fit.aio(100) for _ in range(4)], 'fitting')":
            as_html("fitting", Seen(4, 2, 0, 2.7, "70 of 100 loss 0.014"), 8.1),
        "trainer": trainer._repr_html_(), "client": client._repr_html_(),
    }  # fmt: skip
    rows = "".join(f"<div class=in>{code}</div><div class=out>{shown}</div>" for code, shown in cells.items())
    style = (
        "body{font:14px sans-serif;margin:16px;width:860px} .in{font-family:monospace;background:#f3f3f3;"
        "border:1px solid #ddd;padding:6px} .out{margin:8px 16px 18px} td,th{text-align:left;padding:2px 10px}"
    )
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("there is no chromium: the picture of the notebook stays as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"<meta charset=utf-8><style>{style}</style>{rows}", encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=920,560"]
        picture = f"--screenshot={SCREENS / 'notebook.png'}"
        subprocess.run([browser, *options, picture, page.as_uri()], check=True, capture_output=True, timeout=60)


def main() -> None:
    SCREENS.mkdir(exist_ok=True)
    python = [sys.executable, "-m", "zmqagents"]
    fit = (
        "from zmqagents import RpcClient, progress; import sys; client = RpcClient('localhost', int(sys.argv[1]));"
        "progress([client.get_agent(f'trainer-{n}').fit.aio(8 * n) for n in (1, 2, 3)], 'fitting', timeout=0.9)"
    )
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Trainer], server_id="main") as server,
        RpcClient(server.host, server.port) as client,
    ):
        where = {"AS_SERVER_PORT": str(server.port)}
        trainers: Any = [client.create_agent(Trainer, agent_id=f"trainer-{n}") for n in (1, 2, 3)]
        seen = output_of([sys.executable, "-c", fit, str(server.port)], where)
        draw("progress", "python fit.py", seen[: seen.index("Traceback")].rstrip())
        for n in range(2000):
            trainers[n % 3].score(n)
        results = [trainer.fit.aio(100) for trainer in trainers]
        results.append(trainers[0].fit.aio(100))  # it queues
        busy = client.create_agent(Trainer)
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(0.002):
                busy.score(3)

        worker = threading.Thread(target=work)
        worker.start()
        draw("top", "as_server top", output_of([*python, "top", "--count", "3", "--interval", "0.5"], where))
        ended.set()
        worker.join()
        for result in results:
            result.cancel()
        wrong = [["call", "trainer-1", "scor", "3"], ["call", "trainer-1", "score"], ["call", "trainer-1", "load", "x"],
                 ["strat"]]  # fmt: skip
        said = [output_of([*python, *words], where) for words in wrong]
        typed = [f"as_server {' '.join(words)}" for words in wrong]
        pairs = zip([*typed[1:], ""], said, strict=True)
        draw("errors", typed[0], "\n".join(f"{text}\n\n$ {then}" if then else text for then, text in pairs))
        draw_notebook(client, trainers[0])


if __name__ == "__main__":
    main()
