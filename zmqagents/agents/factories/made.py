"""What is known of an agent once its factory has made it: `Made`, and its form for the host that has it made elsewhere.

A host knows the spec of a class before it makes an agent. What a factory makes is known to the process where it is
made; if that is a child, it tells its host.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, NamedTuple

from ...codec import pack, unpack
from ...errors import RemoteProtocolError
from ..options import AgentOptions
from ..spec import ClassSpec, MethodSpec, spec_of
from .factory import FACTORY_END, FACTORY_HOOKS

__all__ = ["Made"]

_OF_THREADS = ("max_concurrency", "reentrant", "on_busy")  # options that count after an agent has got its place
_UNSAID = AgentOptions()
MAX_BYTES = 1 << 24


class Made(NamedTuple):
    """The spec of an agent that was made, and the options that its class has."""

    spec: ClassSpec
    own: AgentOptions

    @classmethod
    def of(cls, agent: Any, *, context: bool) -> Made:
        """Read it off the object ``agent``. ``context``: it is to be left when it goes.

        The hooks are called as the spec of a factory says. Agents of one class share what is known, as hosts keep what
        they have found out for a spec.
        """
        known = _made.setdefault(type(agent), {})
        if context not in known:
            own = spec_of(type(agent))
            hooks = FACTORY_HOOKS._replace(names=own.hooks.names, context=context)
            end = FACTORY_END if context or own.hooks.on_start or own.hooks.on_stop else None
            known[context] = cls(dataclasses.replace(own, hooks=hooks, end=end, pace=None), own.options)
        return known[context]

    def options(self, chosen: AgentOptions) -> AgentOptions:
        """Those of the agent: ``chosen`` where it was made, and for what was not said there those of its class."""
        unsaid = [name for name in _OF_THREADS if getattr(chosen, name) == getattr(_UNSAID, name)]
        return dataclasses.replace(chosen, **{name: getattr(self.own, name) for name in unsaid})

    def packed(self) -> bytes:
        """For the host of this process."""
        methods = [
            [m.name, m.returns, m.on_loop, m.concurrent, m.signature, m.doc, m.idempotent]
            for m in self.spec.methods.values()
        ]
        options = [getattr(self.own, name) for name in _OF_THREADS]
        spec = self.spec
        return pack([spec.name, spec.short, spec.doc, methods, options, spec.end is not None, spec.exposed])

    @classmethod
    def unpacked(cls, data: bytes, before: ClassSpec) -> Made:
        """What another process has packed. ``before``: the spec of the factory, which has the hooks."""
        try:
            name, short, doc, methods, options, has_end, exposed = unpack(data, max_bytes=MAX_BYTES)
            specs = {each[0]: MethodSpec(*each) for each in methods}
            own = AgentOptions(**dict(zip(_OF_THREADS, options, strict=True)))
        except (TypeError, ValueError) as exc:
            raise RemoteProtocolError(f"this describes no agent: {exc}") from exc
        spec = dataclasses.replace(
            before,
            name=name,
            short=short,
            doc=doc,
            methods=specs,
            exposed=bool(exposed),
            end=before.end if has_end else None,
            hooks=before.hooks._replace(),  # no more those of one that is about to be made
        )
        return cls(spec, own)


_made: weakref.WeakKeyDictionary[type, dict[bool, Made]] = weakref.WeakKeyDictionary()
