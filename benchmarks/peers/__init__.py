"""Other systems, measured by the same loops: each a short driver, each in a virtual environment of its own.

``python -m benchmarks.peers [NAME...]`` (``make bench-peers``) makes the environments under ``.bench/peers``; one that
cannot be made is left out, and why is kept beside it. ``python -m benchmarks --peers all`` then measures those that are
there and says which are not. A driver is used as the peer's own manual says, with its fastest serializer for bytes;
what a peer has no call for, it does not offer.
"""

from __future__ import annotations

# What each environment gets. agentscope 0.1.6 imports tqdm and does not ask for it.
REQUIREMENTS: dict[str, list[str]] = {
    "pyro5": ["Pyro5", "msgpack"],
    "rpyc": ["rpyc"],
    "zerorpc": ["zerorpc"],
    "xoscar": ["xoscar"],
    "dask": ["distributed"],
    "ray": ["ray"],
    "agentscope": ["agentscope[distribute]==0.1.6", "tqdm"],
}
