"""For whom a request is: tokens, and the cookies that a browser gets for them.

    the link's tokens      two, made when the process starts and ended with it: for the user of the process with all
                           rights, and for looking
    `keys token`           stand for a key of this user's key store, with the role that it has at that moment
    a cookie               is given for a token, so that a browser need not keep that; ends after `SESSION_S`, with the
                           process, or with the key

Only this process believes them. A host takes the user's name from it and finds the role itself, see `doors`.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from ..security.keys import KeyStore
from ..security.roles import Role
from ..security.tokens import user_of_token

__all__ = ["Access", "Principal", "is_stranger", "need", "principal_of"]

SESSION_S = 12 * 3600.0
MAX_SESSIONS = 1000


class Principal(NamedTuple):
    """For whom a request is. ``user``: the id as hosts know it, "": the user of this process; ``name``: for people."""

    user: str
    role: Role
    name: str


class Access:
    """Knows the tokens. For the thread of the event loop."""

    def __init__(self, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self.links: dict[Role, str] = {"admin": secrets.token_urlsafe(24), "view": secrets.token_urlsafe(24)}
        self._sessions: OrderedDict[str, tuple[str, float]] = (
            OrderedDict()
        )  # the token for which each was given, its end

    def __repr__(self) -> str:
        return f"<Access [{len(self._sessions)} sessions]>"

    def of_token(self, token: str) -> Principal | None:
        """For whom a token stands now; None if it is none."""
        for role, link in self.links.items():
            if hmac.compare_digest(token.encode(errors="replace"), link.encode()):
                return Principal("", role, "link")
        holder = user_of_token(self._store, token)
        return None if holder is None else Principal(holder.user, holder.role, holder.name)

    def open(self, token: str) -> str | None:
        """The cookie that is given for a token; None for one that stands for nobody."""
        if self.of_token(token) is None:
            return None
        now = self._clock()
        while self._sessions and (len(self._sessions) >= MAX_SESSIONS or next(iter(self._sessions.values()))[1] <= now):
            self._sessions.popitem(last=False)
        session = secrets.token_urlsafe(24)
        self._sessions[session] = token, now + SESSION_S
        return session

    def of_session(self, session: str) -> Principal | None:
        """For whom a cookie stands now; None if it is over."""
        token, end = self._sessions.get(session, ("", 0.0))
        return self.of_token(token) if self._clock() < end else None

    def close(self, session: str) -> None:
        """The cookie stands for nobody from now on."""
        self._sessions.pop(session, None)


def principal_of(request: HTTPConnection) -> Principal:
    """For whom a request is. HTTPException: 401 if that is nobody."""
    found = request.scope.get("state", {}).get("principal")
    if not isinstance(found, Principal):
        text = "a token is needed: Authorization: Bearer TOKEN"
        if "authorization" in request.headers:
            text = "this token stands for nobody, or no longer: as_server keys token prints one that does"
        raise HTTPException(401, text, {"www-authenticate": "Bearer"})
    return found


def is_stranger(request: HTTPConnection) -> bool:
    """Whether a request is for nobody who may look at everything."""
    found = request.scope.get("state", {}).get("principal")
    return not isinstance(found, Principal) or found.role not in ("admin", "view")


def need(request: HTTPConnection, *roles: Role) -> Principal:
    """For whom a request is. HTTPException: 401 if that is nobody, 403 for one with none of ``roles``."""
    principal = principal_of(request)
    if principal.role not in roles:
        raise HTTPException(403, f"this needs the role {' or '.join(roles)}; {principal.name} has {principal.role}")
    return principal
