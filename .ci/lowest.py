"""Print pip constraints that pin what users install to the lower bounds that setup.cfg promises."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

USERS_EXTRAS = ("a2a", "bench", "mcp", "models", "numpy", "otel", "rich", "top", "web")


def constraints(setup_cfg: str) -> list[str]:
    """``name==bound`` for each requirement with a lower bound. Raises ValueError for one without."""
    config = configparser.ConfigParser()
    config.read_string(setup_cfg)
    extras = config["options.extras_require"]
    lines = [config["options"]["install_requires"], *(extras[name] for name in USERS_EXTRAS)]
    pins = []
    for requirement in dict.fromkeys(filter(None, "\n".join(lines).splitlines())):
        found = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z-]+\])?>=([0-9.b]+)(,<[0-9.]+)?(;.*)?", requirement)
        if found is None:
            raise ValueError(f"setup.cfg: {requirement!r} is not of the form name>=version")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(constraints((Path(__file__).parents[1] / "setup.cfg").read_text(encoding="utf-8"))))
