"""Coordinator: an agent that asks other agents and merges what they know.

It is made with the proxies of some indexers: a proxy that is passed as an argument arrives as a proxy,
so from here on the agents talk to each other inside of the host, without the client.

    $ as_server call coordinator reply '"read a zip archive"' --port 7411
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zmqagents import AgentBase

WAIT_S = 30.0  # for the slowest indexer; while it waits, this agent takes up no worker
PER_MODULE = 2  # answers from one module: the others should have a chance to be seen


class Coordinator(AgentBase):
    """Answers questions from several ``indexers``, each of which knows a part."""

    def __init__(self, indexers: Sequence[Any]) -> None:
        super().__init__(name="coordinator")
        self._indexers = list(indexers)

    def reply(self, question: str, k: int = 5) -> dict[str, Any]:
        """The ``k`` best answers of all indexers, best first.

        Two rounds: how common is each word over all shares, then the search by that one measure. In
        each round all indexers are asked first and waited for afterwards, so they work at the same time.
        """
        asked = [indexer.statistics(question) for indexer in self._indexers]
        statistics = add_up([result.result(timeout=WAIT_S) for result in asked])
        asked = [indexer.search(question, k=4 * k, statistics=statistics) for indexer in self._indexers]
        answers = [answer for result in asked for answer in result.result(timeout=WAIT_S)]
        return {"question": question, "searched": statistics["entries"], "answers": best(answers, k)}


def add_up(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all shares together."""
    containing: Counter[str] = Counter()
    for part in parts:
        containing.update(part["containing"])
    return {
        "entries": sum(part["entries"] for part in parts),
        "words": sum(part["words"] for part in parts),
        "containing": dict(containing),
    }


def best(answers: Sequence[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """The ``k`` best answers, no more than `PER_MODULE` of one file and no text twice."""
    chosen: list[dict[str, Any]] = []
    taken: Counter[str] = Counter()
    for answer in sorted(answers, key=lambda answer: (-answer["score"], answer["name"])):
        module = answer["name"].split(".")[0]
        repeated = any(answer["summary"] == other["summary"] for other in chosen)
        if taken[module] < PER_MODULE and not repeated:
            taken[module] += 1
            chosen.append(answer)
    return chosen[:k]
