"""The figures of a host as Prometheus reads them: its text format, or OpenMetrics where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from ..telemetry.metrics import HOST_UP, Buckets, Metric, samples

__all__ = ["encode"]


Told = Sequence[tuple[str, Mapping[str, Any] | None]]


def encode(hosts: Told, accept: str) -> tuple[bytes, str]:
    """A page and its content type, for a client that says ``accept``. ``hosts``: the figures of each by its id; None:
    it does not answer.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(hosts))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Figures(Collector):
    def __init__(self, hosts: Told) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[Family]:
        """The families of metrics, each with its samples."""
        up, families = _family(HOST_UP), dict[Metric, Any]()
        for host, figures in self._hosts:
            up.add_metric([host], 0 if figures is None else 1)
            for metric, labels, value in () if figures is None else samples(figures):
                family = families.get(metric)
                if family is None:
                    family = families[metric] = _family(metric)
                _add(family, [host, *labels], value)
        yield up
        yield from families.values()


def _family(metric: Metric) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[metric.kind](metric.name, metric.help, labels=["host", *metric.labels])


def _add(family: Any, labels: list[str], value: float | Buckets) -> None:
    if isinstance(value, Buckets):
        family.add_metric(labels, buckets=list(_buckets(value)), sum_value=value.sum)
    else:
        family.add_metric(labels, value)


def _buckets(value: Buckets) -> Iterator[tuple[Any, ...]]:
    """Edges and counts; in OpenMetrics with an exemplar, the trace of a call, where there is one."""
    for place, (edge, count) in enumerate(value.cumulative):
        example = value.examples.get(str(place))
        if example is None:
            yield edge, count
        else:
            trace_id, took_s, ended = example
            yield edge, count, Exemplar({"trace_id": trace_id}, took_s, ended)
