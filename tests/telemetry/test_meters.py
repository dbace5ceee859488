"""Counters of calls: outcomes and times by class and method, under a bounded number of names."""

from __future__ import annotations

import threading

import pytest

from zmqagents.telemetry.meters import AT_ONCE, EDGES_S, MAX_PAIRS, OTHER, Meters, Outcome


def test_a_duration_counts_between_its_edges_and_an_edge_counts_below() -> None:
    meter = Meters().of_class("m:A")["f"]
    for seconds in (0.0, 0.0001, 0.00011, 300.0, 301.0):
        meter.note(Outcome.OK, seconds, None)
    told = meter.told()["queued"]
    assert len(told["counts"]) == len(EDGES_S) + 1
    assert (told["counts"][0], told["counts"][1], told["counts"][-2], told["counts"][-1]) == (2, 1, 1, 1)
    assert told["sum_s"] == pytest.approx(601.00021)


def test_a_call_counts_what_it_waited_and_ran_and_both_together() -> None:
    meters = Meters()
    meter = meters.of_class("m:A")["f"]
    meter.note(Outcome.ERROR, 0.002, 0.02)
    told = meter.told()
    assert (told["class"], told["method"]) == ("m:A", "f")
    assert {name: count for name, count in told["ends"].items() if count} == {"error": 1}
    sums = [told[name]["sum_s"] for name in ("queued", "ran", "took")]
    assert sums == pytest.approx([0.002, 0.02, 0.022])
    assert [told[name]["counts"].index(1) for name in ("queued", "ran", "took")] == [3, 5, 5]


def test_a_call_that_never_began_has_no_time_of_running() -> None:
    meters = Meters()
    meter = meters.of_class("m:A")["f"]
    meter.note(Outcome.TIMEOUT, 2.0, None)
    told = meter.told()
    assert sum(told["ran"]["counts"]) == 0
    assert (told["queued"], told["took"]["sum_s"]) == (told["took"], 2.0)


def test_a_short_call_is_in_every_histogram_as_one_that_did_not_wait() -> None:
    meters = Meters()
    of_class = meters.of_class("m:A")
    meter = of_class["f"]
    of_class.at_once["f"](0.00002)
    of_class.at_once["f"](0.00004)
    of_class.ended["f"]((0.002, 0.02))
    assert (meter.calls, meters.short) == (3, 2)
    meters.settle()
    assert (meter.calls, meters.short) == (3, 2)
    told = meter.told()
    assert told["ends"]["ok"] == 3
    assert [told[name]["counts"][0] for name in ("queued", "ran", "took")] == [2, 2, 2]
    sums = [told[name]["sum_s"] for name in ("queued", "ran", "took")]
    assert sums == pytest.approx([0.002, 0.02006, 0.02206])


def test_beyond_the_limit_of_names_all_methods_count_as_one() -> None:
    meters = Meters()
    few = meters.of_class("m:Few")
    assert meters.of_class("m:Few") is few
    for number in range(MAX_PAIRS):
        meters.of_class(f"m:C{number}").at_once["f"](0.00001)
    assert OTHER not in {meter.method for meter in meters}, "nothing has counted under it"
    for method in ("f", "g"):
        few.at_once[method](0.00001)
    assert few["f"] is few["g"]
    told = meters.told()
    assert len(told) == MAX_PAIRS + 1
    assert (told[-1]["class"], told[-1]["method"], told[-1]["ends"]["ok"]) == (OTHER, OTHER, 2)


def test_agents_are_counted_by_class_as_long_as_there_are_some() -> None:
    meters = Meters()
    meters.of_class("m:A").count_agents(2)
    meters.of_class("m:B").count_agents(1)
    meters.of_class("m:B").count_agents(-1)
    assert meters.agents() == {"m:A": 2}
    for number in range(MAX_PAIRS + 5):
        meters.of_class(f"m:C{number}").count_agents(1)
    counts = meters.agents()
    assert (len(counts), counts[OTHER]) == (MAX_PAIRS + 1, 6)


def test_many_calls_are_put_between_the_edges_as_one_by_one() -> None:
    one, many = Meters(), Meters()
    times = [(edge * factor, edge / factor) for edge in EDGES_S for factor in (0.9, 1.0, 1.1)] * 80
    assert len(times) > 2 * AT_ONCE
    for queued_s, ran_s in times:
        one.of_class("m:A")["f"].note(Outcome.OK, queued_s, ran_s)
        many.of_class("m:A").ended["f"]((queued_s, ran_s))
    (slowly,), (at_once,) = one.told(), many.told()
    for name in ("queued", "ran", "took"):
        assert at_once[name]["counts"] == slowly[name]["counts"]
        assert at_once[name]["sum_s"] == pytest.approx(slowly[name]["sum_s"])
    assert at_once["ends"] == slowly["ends"]


def test_a_thread_may_count_while_another_settles() -> None:
    meters, calls = Meters(), 50_000
    over = threading.Event()

    def settle() -> None:
        while not over.is_set():
            meters.settle()

    settler = threading.Thread(target=settle)
    settler.start()
    ended = meters.of_class("m:A").ended["f"]
    for _ in range(calls):
        ended((0.0002, 0.002))
    over.set()
    settler.join()
    (told,) = meters.told()
    assert (told["ends"]["ok"], told["queued"]["counts"][1], told["ran"]["counts"][3]) == (calls, calls, calls)
