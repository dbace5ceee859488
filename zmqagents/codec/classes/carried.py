"""What this process knows of classes, for a host that it starts as a new interpreter: a fork has it anyway.

Each class is pickled by itself, so that one that cannot travel takes no other with it. What is left out is logged with
the reason; a call that needs it says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ... import errors
from .. import pickling
from .names import AGENT_FILES, wire_name
from .types import Registration, known_by_kind, registry

__all__ = ["carried", "take_over"]

log = logging.getLogger(__name__)

# The child has them as soon as it imports these.
_OWN = ("builtins", "zmqagents", AGENT_FILES)


def carried(named: Iterable[type] = ()) -> bytes:
    """The registered classes and exceptions and the trusted packages of this process, for `take_over`; b"" for none.

    ``named``: further classes, which the receiver is to know as if they were registered.
    """
    known = [*registry.registered.values()]
    registered = {each.cls for each in known}
    known += [Registration(cls, wire_name(cls)) for cls in named if cls not in registered and known_by_kind(cls)]
    found = [_pickled(list(each), each.cls) for each in known if _is_others(each.cls)]
    found += [_pickled([cls], cls) for cls in list(errors.known_types.values()) if _is_others(cls)]
    pickles = [each for each in found if each is not None]
    return pickling.dumps((registry.trusted, pickles)) if registry.trusted or pickles else b""


def take_over(data: bytes) -> None:
    """Know what the process knew that started this one. ``data`` must come from there: it is unpickled."""
    trusted, pickles = pickling.loads(data)
    registry.trust(trusted)
    for each in pickles:
        try:
            cls, *more = pickling.loads(each)
        except Exception as exc:  # importing a module runs its code
            log.warning("a registered type is not known here: %s: %s", type(exc).__name__, errors.safe_text(exc))
            continue
        if more:
            registry.add(Registration(cls, *more))
        else:
            errors.register_exception(cls)


def _is_others(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in _OWN


def _pickled(parts: list[Any], cls: type) -> bytes | None:
    try:
        return pickling.dumps(parts)
    except Exception as exc:  # a conversion that holds a lock, or no cloudpickle for a class of __main__
        log.warning("the new host will not know %s.%s: %s", cls.__module__, cls.__qualname__, errors.safe_text(exc))
        return None
