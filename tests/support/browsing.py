"""A page in the Chromium of this machine: looked at, and taken pictures of."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

__all__ = ["CHROMIUM", "KINDS", "LIMIT_MS", "LIMIT_S", "PICTURES", "Look", "looking", "picture", "program"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_S = 30.0
LIMIT_MS = LIMIT_S * 1000
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PICTURES = os.environ.get("ZMQAGENTS_PICTURES")
KINDS: dict[str, dict[str, Any]] = {
    "light": {}, "dark": {"color_scheme": "dark"}, "narrow": {"viewport": {"width": 400, "height": 800}},
}  # fmt: skip


@contextlib.contextmanager
def program(*words: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """``as_server ... --json``: what its line tells, and the process."""
    command = [sys.executable, "-m", "zmqagents", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()


@dataclass
class Look:
    """A browser's page, what its console said, and where its requests went."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        """Follow a link to ``path`` as one who clicks it: the script of the page goes on."""
        self.page.evaluate(
            "path => { const a = document.createElement('a'); a.href = path; document.body.append(a); a.click();"
            " a.remove(); }", path,
        )  # fmt: skip
        self.page.locator("h1").first.wait_for(timeout=LIMIT_MS)

    def sees(self, text: str | re.Pattern[str]) -> None:
        """Wait until the text is shown."""
        self.page.get_by_text(text).first.wait_for(timeout=LIMIT_MS)


@contextlib.contextmanager
def looking(link: str, **options: Any) -> Iterator[Look]:
    """A browser that has opened ``link``."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            look = Look(browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options}).new_page())
            look.page.on("console", lambda message: look.said.append(message.text))
            look.page.on("pageerror", lambda error: look.said.append(str(error)))
            look.page.on("request", lambda request: look.asked.append(request.url))
            look.page.on("dialog", lambda dialog: look.said.append(f"dialog: {dialog.message}"))
            look.page.goto(link)
            yield look
        finally:
            browser.close()


def picture(look: Look, path: Path) -> None:
    """Write what is seen, with few colours: a third of the size."""
    from PIL import Image  # here: only pictures need it

    image = Image.open(io.BytesIO(look.page.screenshot())).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
