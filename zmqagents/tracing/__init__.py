"""Traces of calls, by OpenTelemetry: spans of clients and hosts, and the ids by which they belong together.

    switch         whether calls are traced in this process; `instrument` and `uninstrument`
    context        ``traceparent``, the text by which a call carries its trace (W3C Trace Context)
    spans          the spans that a client makes, and what all spans have in common
    hosts          the spans that a host makes of the calls that it runs
    provider       the SDK set up by the variables ``OTEL_*``, for a process that is a host
    instrumentor   the switch as ``opentelemetry-instrument`` knows it

Without `instrument` nothing of OpenTelemetry is imported, and a call pays one look at `switch.active`.

May import nothing of the package but ``version`` and ``errors``. OpenTelemetry is imported by none but those below
``context``, and by them only once `instrument` was called.
"""
