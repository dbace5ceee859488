"""Pickles between a program and the hosts that it has started itself, and nowhere else. Door to cloudpickle.

Classes of ``__main__`` and of notebooks have no module that another process could import; they travel by value.
A pickle is a program, so it is read only where the writer is known to be the reader's own parent: the launch
payload that a parent hands to its child, and the values of a private host, whose socket only its parent's user
can reach.
"""

from __future__ import annotations

from typing import Any

from .errors import MissingExtra

__all__ = ["dumps", "have_cloudpickle", "loads"]


def have_cloudpickle() -> bool:
    """True if the extra is installed."""
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return False
    return True


def dumps(value: Any) -> bytes:
    """``value`` as a pickle; MissingExtra without cloudpickle, whatever pickling raises otherwise."""
    try:
        import cloudpickle
    except ImportError:
        raise MissingExtra(
            "classes of __main__ or a notebook need cloudpickle to reach a host: pip install 'zmqagents[cloudpickle]'"
        ) from None
    data: bytes = cloudpickle.dumps(value)
    return data


def loads(data: bytes) -> Any:
    """The reverse of `dumps`. Only for bytes that this program's own parent or child has written."""
    import pickle

    return pickle.loads(data)
