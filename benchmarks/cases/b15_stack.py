"""B15: a DataFrame of a million cells, an Arrow table and a torch tensor of 16 MiB, there and back.

Each figure is the rate of one kind over that of a numpy array of as many bytes, in the same round; a package that is
not installed has no figure.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from .. import ours
from . import Measurement, Options, in_turn, run, seconds_of

MIB = 1 << 20


def values() -> dict[str, tuple[Any, Any]]:
    """For each figure the value and the numpy array of the same bytes."""
    numpy = importlib.import_module("numpy")
    cells, words = numpy.random.rand(100_000, 10), numpy.random.rand(2 * MIB)
    makers: dict[str, tuple[str, Any, Any]] = {
        "pandas_ratio": ("pandas", lambda pandas: pandas.DataFrame(cells), cells),
        "arrow_ratio": ("pyarrow", lambda pyarrow: pyarrow.table({"a": words}), words),
        "torch_ratio": ("torch", lambda torch: torch.from_numpy(words.copy()), words),
    }
    found = {}
    for figure, (package, make, array) in makers.items():
        try:
            found[figure] = (make(importlib.import_module(package)), array)
        except ImportError:
            continue
    return found


def rounds(options: Options) -> Iterator[list[Measurement]]:
    calls = options.scaled(8, 3)
    with ours.host(options, ours.Echo, types=("torch",)) as (_, client):
        agent: Any = client.create_agent(ours.Echo)
        pairs = values()

        def seconds(value: Any) -> float:
            return seconds_of(lambda: [agent.echo(value) for _ in range(calls)])

        for pair in pairs.values():  # the first imports the package
            for value in pair:
                agent.echo(value)
        for number in range(options.rounds):
            figures = {}
            for figure, (value, array) in in_turn(pairs.items(), number):
                figures[figure] = seconds(array) / seconds(value)
            yield [{"subject": "zmqagents", "round": number, "figures": figures}]


if __name__ == "__main__":
    run(rounds)
