"""An attrs class, in a module of its own: attrs is not installed everywhere."""

from __future__ import annotations

import attrs


@attrs.define
class Mark:
    a: int
