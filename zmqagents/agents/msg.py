"""`Msg`: a message between agents, for programs that want a common shape.

Nothing in zmqagents needs it: any value travels. It has the fields that agent frameworks agree on. Importing
zmqagents registers it with the codec, so a `Msg` arrives as a `Msg`, at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from ..codec import register_type

__all__ = ["Msg"]


@register_type(name="zmqagents:Msg")
@dataclass
class Msg:
    """One message: the sender's name and role, and the content.

    ``content`` and ``metadata`` may be any values that can be sent; ``timestamp`` is UTC in ISO 8601.
    """

    name: str
    content: Any
    role: str = "assistant"
    metadata: Any = None
    id: str = field(default_factory=lambda: os.urandom(8).hex())
    timestamp: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Msg:
        """The reverse of `to_dict`; unknown fields are ignored."""
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in data.items() if key in known})
