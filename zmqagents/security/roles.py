"""What a client may do: its role, and the lesser one that it may take for a connection.

    admin   everything
    call    make agents and call them; of other users' calls it sees nothing and may end none
    view    see everything, with task ids shortened, since an id is the key to a result; call and change nothing
    door    a web process: see as ``view`` does, and open connections in the name of other users

A client may ask for a connection with less than its role: to look without the means to break anything. A door, and a
program of the host's own user on the same machine, may also name the user for whom a connection is opened; the host
takes that user's own role then, and nothing more.
"""

from __future__ import annotations

import re
from typing import Any, Literal, cast, get_args

from ..errors import PermissionRefused

__all__ = ["CALLERS", "ROLES", "SEERS", "ActsFor", "Role", "asked_of", "is_role", "lesser", "may_stand_in", "shortened"]

Role = Literal["admin", "call", "view", "door"]
ROLES: tuple[Role, ...] = get_args(Role)
ActsFor = tuple[str, Role]  # a user, "" for the client's own, and the role that is asked for
CALLERS: frozenset[Role] = frozenset({"admin", "call"})  # may make and call agents
SEERS: frozenset[Role] = frozenset({"admin", "view", "door"})  # see what belongs to other users
_LESSER: dict[Role, frozenset[Role]] = {
    "admin": frozenset({"admin", "call", "view"}), "call": frozenset({"call"}), "view": frozenset({"view"}),
    "door": frozenset({"view"}),
}  # fmt: skip

# The first half of a task id is the client's, 16 letters: see `wire.messages.client_prefix`.
_TASK_ID = re.compile(r"(?<![a-z0-9])([a-z2-7]{4})[a-z2-7]{12}(-[0-9]+)")
_CLIENT = re.compile(r"\b(client [a-z2-7]{4})[a-z2-7]{12}\b")


def is_role(word: str) -> bool:
    """Whether ``word`` names a role."""
    return word in ROLES


def asked_of(value: object) -> ActsFor | None:
    """``acts_for`` of a HELLO, None if it has none. Raises PermissionRefused for what can be none."""
    match value:
        case None:
            return None
        case [str(user), str(role)] if is_role(role) and (not user or user.startswith("key:")):
            return user, cast(Role, role)
    raise PermissionRefused("acts_for of HELLO is the user id of a key, or nothing, and a role")


def lesser(role: Role, wanted: Role) -> Role:
    """``wanted``, if a client with ``role`` may take it; else raises PermissionRefused."""
    if wanted not in _LESSER[role]:
        raise PermissionRefused(f"the role {wanted} is not part of the role {role}")
    return wanted


def may_stand_in(user: str, role: Role) -> bool:
    """Whether a user may open connections for others. An admin by uid is the host's own user, who has all keys."""
    return role == "door" or (role == "admin" and user.startswith("uid:"))


def shortened(value: Any) -> Any:
    """Plain data with every task id in it cut to ``mfzw..-17``: enough to tell calls apart, too little to ask by."""
    if isinstance(value, str):
        if "-" in value:
            value = _TASK_ID.sub(r"\1..\2", value)
        return _CLIENT.sub(r"\1..", value) if "client " in value else value
    if isinstance(value, list | tuple):
        return [shortened(each) for each in value]
    if isinstance(value, dict):
        return {
            key: f"{each[:4]}.." if key == "client" and isinstance(each, str) else shortened(each)
            for key, each in value.items()
        }  # fmt: skip
    return value
