"""The table of management requests."""

from __future__ import annotations

from collections import Counter

from zmqagents.broker.management import ADMIN_ONLY, REQUESTS, RUN_AS_CALLS, Runs
from zmqagents.wire.messages import Op


def test_each_operation_of_the_protocol_has_exactly_one_row() -> None:
    names = [value for name, value in vars(Op).items() if name.isupper()]
    assert Counter(request.op for request in REQUESTS) == Counter(names)


def test_a_request_has_a_handler_unless_the_scheduler_runs_it_as_a_call() -> None:
    assert {request.op for request in REQUESTS if request.handler is None} == RUN_AS_CALLS


def test_what_asks_the_store_or_runs_code_of_others_leaves_the_router_thread_alone() -> None:
    apart = {request.op for request in REQUESTS if request.runs is Runs.APART}
    assert apart == {Op.DUMP, Op.LOGS, Op.METRICS, Op.RESULTS, Op.MODELS, Op.REGISTER}


def test_what_changes_the_host_as_a_whole_is_for_admins() -> None:
    assert {Op.STOP, Op.DELETE_ALL, Op.MODELS, Op.REGISTER} <= ADMIN_ONLY


def test_what_changes_anything_is_a_line_of_the_log() -> None:
    changing = {
        Op.CANCEL, Op.DELETE, Op.DELETE_ALL, Op.STOP, Op.MODELS, Op.REGISTER, Op.RESTART, Op.MOVE, Op.DRAIN,
    }  # fmt: skip
    assert {request.op for request in REQUESTS if request.audited} == changing
