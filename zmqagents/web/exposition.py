"""The figures of a host as Prometheus reads them: its text format, or OpenMetrics where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from ..telemetry.metrics import HOST_UP, Buckets, Metric, samples

__all__ = ["encode"]


def encode(host: str, figures: Mapping[str, Any] | None, accept: str) -> tuple[bytes, str]:
    """A page and its content type, for a client that says ``accept``. ``figures`` None: ``host`` does not answer."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(host, figures))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Figures(Collector):
    def __init__(self, host: str, figures: Mapping[str, Any] | None) -> None:
        self._host = host
        self._figures = figures

    def collect(self) -> Iterator[Family]:
        """The families of metrics, each with its samples."""
        up = _family(HOST_UP)
        up.add_metric([self._host], 0 if self._figures is None else 1)
        yield up
        if self._figures is None:
            return
        family, last = None, None
        for metric, labels, value in samples(self._figures):
            if metric is not last:
                if family is not None:
                    yield family
                family, last = _family(metric), metric
            _add(family, [self._host, *labels], value)
        if family is not None:
            yield family


def _family(metric: Metric) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[metric.kind](metric.name, metric.help, labels=["host", *metric.labels])


def _add(family: Any, labels: list[str], value: float | Buckets) -> None:
    if isinstance(value, Buckets):
        family.add_metric(labels, buckets=list(value.cumulative), sum_value=value.sum)
    else:
        family.add_metric(labels, value)
