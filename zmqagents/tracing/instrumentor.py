"""The switch as OpenTelemetry's tools know it: ``opentelemetry-instrument python app.py`` finds it by itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from . import switch

__all__ = ["ZmqAgentsInstrumentor"]


class ZmqAgentsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """``ZmqAgentsInstrumentor().instrument(tracer_provider=...)`` is `zmqagents.instrument`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: this package is the one that is instrumented."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        switch.instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        switch.uninstrument()
