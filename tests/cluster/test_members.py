"""Hosts join a cluster, run its agents, and pass calls on to where they live."""

from __future__ import annotations

import pytest

from cluster_hosts import Caller, hosts_on
from redis_server import RedisServer
from scale import linux_only
from zmqagents.errors import CallTimeout, NoHost, PermissionRefused, UnknownCluster, UnknownMethod
from zmqagents.wire.messages import Flag

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]


def test_a_host_joins_its_cluster_and_leaves_it(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        figures = hosts.callers[0].status()
        assert (figures["name"], figures["state"], figures["members"]) == ("shop", "held", 1)
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].status()["members"] == 1


def test_an_agent_is_made_by_its_first_call_and_its_state_is_kept(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].call("Account/ann", "add", 500) == 500
        assert hosts.callers[0].call("Account/ann", "add", 1) == 501
        assert hosts.callers[0].status()["saves"] >= 2
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].call("Account/ann", "balance") == 501


def test_the_constructor_has_no_arguments_and_its_defaults_count(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].ask("cluster:shop/Account/tom", "currency", flags=Flag.ATTRIBUTE) == "EUR"


def test_an_agent_that_is_called_at_any_host_lives_on_one(redis: RedisServer) -> None:
    with hosts_on(redis, 3) as hosts:
        for number in range(12):
            homes = {caller.call(f"Account/all-{number}", "process") for caller in hosts.callers}
            assert len(homes) == 1
            for caller in hosts.callers:
                caller.call(f"Account/all-{number}", "add", 1)
            assert hosts.callers[0].call(f"Account/all-{number}", "balance") == 3
        agents = [caller.status()["agents"] for caller in hosts.callers]
        assert sum(agents) == 12
        assert max(agents) < 12, "placement has put all on one host"


def test_what_a_method_raises_and_what_it_left_is_passed_back(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for caller in hosts.callers:
            with pytest.raises(KeyError):
                caller.call("Account/errs", "fail_after", 5)
            with pytest.raises(UnknownMethod):
                caller.call("Account/errs", "no_such")
        assert hosts.callers[0].call("Account/errs", "balance") == 10


def test_a_late_call_times_out_at_any_host_and_the_agent_goes_on(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for caller in hosts.callers:
            with pytest.raises(CallTimeout):
                caller.call("Account/slow", "slow", 30, timeout=0.4)
        assert hosts.callers[0].call("Account/slow", "add", 1) == 1


def test_an_agent_that_cannot_be_made_says_why_and_is_tried_again(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for caller in hosts.callers:
            with pytest.raises(ValueError, match="not today"):
                caller.call("Stubborn/x", "call")


def test_a_class_that_no_member_has_is_told_at_once(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts, pytest.raises(NoHost, match="no member has the class Unheard"):
        hosts.callers[0].call("Unheard/x", "call")


def test_another_cluster_is_unknown(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts, pytest.raises(UnknownCluster, match="member of the cluster shop"):
        hosts.callers[0].ask("cluster:other/Account/x", "call")


def test_an_agent_without_state_starts_afresh_on_the_next_host(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        assert [hosts.callers[0].call("Forgetful/x", "call") for _ in range(2)] == [1, 2]
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].call("Forgetful/x", "call") == 1


def test_a_call_that_names_another_user_is_refused_of_those_that_are_no_members(redis: RedisServer) -> None:
    with hosts_on(redis, 1, insecure=True) as hosts:
        stranger = Caller(f"127.0.0.1:{hosts.launchers[0].port}", transport="tcp-insecure")
        try:
            assert stranger.call("Account/mine", "add", 1) == 1
            for option in ({"hop": 1}, {"user": "uid:0"}, {"activate": True}):
                with pytest.raises(PermissionRefused):
                    stranger.ask("cluster:shop/Account/other", "add", 1, **option)
        finally:
            stranger.close()
