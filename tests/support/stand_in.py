"""Stands for pytest and for hypothesis in every process but pytest's own.

A host that has an agent class of a test module imports that module, and with it pytest (0.12 s of CPU time) and
hypothesis (0.14 s): more than all the rest of its start. Of both it needs only that decorators and strategies at the
top of the module can be named. `conftest.py` puts a directory that holds this file by these names at the front of the
path, when pytest itself has imported the real ones; hosts and programs get the path of the process that starts them.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


class Anything:
    """Has every attribute, and gives itself for every call; as a decorator it leaves what it decorates."""

    def __init__(self, *_: Any) -> None:
        """Takes what `class Machine(RuleBasedStateMachine)` hands over."""

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if isinstance(args[0] if args else None, type) else self

    def __or__(self, other: Any) -> Anything:
        return self


_ANYTHING = Anything()
importorskip = importlib.import_module  # agents use what it gives


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _ANYTHING


for part in ("stateful", "extra"):
    sys.modules[f"{__name__}.{part}"] = sys.modules[__name__]
