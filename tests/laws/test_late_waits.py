"""The wait-for graph where waits are told by messages that come late: no alarm that is false when it is given.

Each agent stands for a process. What its code does is true at once, and told to the host later, in order. A wait may
end by itself: the host hears of that later still, and sees it only if it looks at the process.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from scale import pick
from world import Sent, World, failed
from zmqagents.errors import DeadlockError
from zmqagents.scheduler.dispatcher import Resume, State, Ticket
from zmqagents.wire.messages import Flag

GRAPHS = pick(1_000, 10_000)
STEPS = 60


class Wait:
    """One wait of one call; ``over`` is the truth."""

    def __init__(self, ticket: Ticket, targets: list[Sent]) -> None:
        self.ticket = ticket
        self.targets = targets
        self.over = False
        self.known = False  # to the host


class Processes:
    """Agents that call each other, wait and give up, in random order. ``looks``: the host looks at the processes."""

    def __init__(self, seed: int, *, looks: bool, downwards: bool) -> None:
        self.chance = random.Random(seed)
        self.downwards = downwards
        self.world = World(capacity=2, max_threads=1000, end_waits=self.end_waits if looks else None)
        self.names = [f"a{number}" for number in range(self.chance.randint(2, 5))]
        self.world.agents(*self.names)
        self.unsent: dict[str, deque[Callable[[], None]]] = {name: deque() for name in self.names}
        self.waits: list[Wait] = []
        self.made: dict[Ticket, list[Sent]] = {}
        self.failing: set[Ticket] = set()
        self.returned: set[Ticket] = set()
        self.alarms: list[bool] = []  # whether each was true
        self.calls = 0
        for _ in range(self.chance.randint(2, 4)):
            self.world.send(self.chance.choice(self.names), "co", flags=Flag.DETACHED)

    def end_waits(self, of: Collection[Any]) -> bool:
        """What `Members.end_waits` does."""
        over = [wait for wait in self.waits if wait.known and wait.over and wait.ticket in of]
        for wait in over:
            self._forget(wait)
        return bool(over)

    def _forget(self, wait: Wait) -> None:
        if wait.known:
            wait.known = False
            self.world.dispatcher.on_unwait(wait.ticket, [target.task_id for target in wait.targets])

    def current(self, ticket: Ticket) -> list[Wait]:
        return [wait for wait in self.waits if wait.ticket is ticket and not wait.over]

    def busy(self) -> list[Ticket]:
        """Calls whose code runs or waits."""
        return [ticket for ticket in self.world.started if not ticket.op and ticket not in self.returned]

    # -------------------------------------------------- one step

    def step(self) -> None:
        chance, going = self.chance, self.busy()
        queues = [queue for queue in self.unsent.values() if queue]
        if queues and (not going or chance.random() < 0.4):
            chance.choice(queues).popleft()()
        elif going:
            self.act(chance.choice(going))

    def act(self, ticket: Ticket) -> None:
        """The code of ``ticket`` does one thing."""
        chance, own = self.chance, self.made.setdefault(ticket, [])
        waits, agent = self.current(ticket), ticket.agent.agent_id
        if waits:
            if all(target.answered for target in waits[0].targets) or chance.random() < 0.3:  # a time-out, or done
                self.give_up(waits[0])
            return
        self_number = self.names.index(agent)
        choice = self.names[self_number + 1 :] if self.downwards else self.names
        if ticket in self.failing or chance.random() < 0.2 or self.calls > STEPS or not choice:
            self.returned.add(ticket)
            self.unsent[agent].append(lambda: self.finish(ticket))
        elif not own or chance.random() < 0.5:
            name = chance.choice(choice)
            self.calls += 1
            self.unsent[agent].append(lambda: self.call(ticket, name))
        else:
            wait = Wait(ticket, chance.sample(own, min(len(own), chance.randint(1, 2))))
            self.waits.append(wait)
            self.unsent[agent].append(lambda: self.begin(wait))

    def give_up(self, wait: Wait) -> None:
        wait.over = True
        self.unsent[wait.ticket.agent.agent_id].append(lambda: self._forget(wait))

    # -------------------------------------------------- what the host hears

    def call(self, ticket: Ticket, name: str) -> None:
        if ticket.state is not State.DONE:
            parent = Sent(self.world, ticket.peer, ticket.call_id, ticket)
            self.made[ticket].append(self.world.later(parent, name, "co"))

    def finish(self, ticket: Ticket) -> None:
        if ticket.state is not State.DONE:
            self.world.done(ticket, failed(DeadlockError("as told")) if ticket in self.failing else None)

    def begin(self, wait: Wait) -> None:
        if wait.ticket.state is State.DONE:
            return
        targets = [target for target in wait.targets if not target.answered]
        true = bool(targets) and not self.can_end(wait.ticket)
        effects = self.world.dispatcher.on_wait(
            wait.ticket, [target.task_id for target in wait.targets], self.world.now
        )
        self.world.see(effects)
        refused = [e for e in effects if isinstance(e, Resume) and e.ticket is wait.ticket and e.error is not None]
        if not refused:
            wait.known = True
            return
        if not wait.over:  # else the code has gone on, and hears of no refusal
            self.alarms.append(true)
            wait.over = True
            self.failing.add(wait.ticket)

    def can_end(self, ticket: Ticket) -> bool:
        """The plain definition, on the truth: what can end, what can end then, until nothing is added."""
        known = {*self.world.dispatcher.tasks.values(), *self.world.started}
        ended: set[Ticket] = set()

        def may_end(other: Ticket) -> bool:
            if other.state is State.QUEUED:
                return any(holder in ended for holder in other.agent.holders)
            return all(
                target.answered or target.ticket in ended
                for wait in self.current(other) for target in wait.targets
            )  # fmt: skip

        while more := {other for other in known if other not in ended and may_end(other)}:
            ended |= more
        return ticket in ended

    def run(self) -> None:
        """Until nothing moves any more; then every wait that could never end has been refused."""
        limit = 100 * STEPS
        while limit and (self.busy() or any(self.unsent.values())):
            self.step()
            limit -= 1
        assert limit, "nothing ends"


def test_no_alarm_is_false_when_it_is_given() -> None:
    true = 0
    for seed in range(GRAPHS):
        play = Processes(seed, looks=True, downwards=False)
        play.run()
        assert all(play.alarms), f"seed {seed}"
        true += len(play.alarms)
        play.world.assert_idle()
    assert true > GRAPHS / 10, "there are deadlocks among them"


def test_a_host_that_only_listens_gives_false_alarms() -> None:
    """Otherwise the test above would show nothing."""
    false = 0
    for seed in range(GRAPHS):
        play = Processes(seed, looks=False, downwards=False)
        play.run()
        false += play.alarms.count(False)
    assert false > 0


def test_call_graphs_without_a_cycle_give_no_alarm_however_late_the_messages_are() -> None:
    for seed in range(GRAPHS):
        play = Processes(seed, looks=bool(seed % 2), downwards=True)
        play.run()
        assert play.alarms == [], f"seed {seed}"
        play.world.assert_idle()
