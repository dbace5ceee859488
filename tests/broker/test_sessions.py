"""Who is here and who is lost: sessions without sockets, threads and clock."""

from __future__ import annotations

import logging

import pytest

from lines import Line
from world import World, ok
from zmqagents import codec
from zmqagents.broker import clients
from zmqagents.broker.clients import HINT_EVERY_S, NEW_KEY_S, ROLES_EVERY_S, SILENCE_S, Clients
from zmqagents.broker.session import Session
from zmqagents.errors import AuthenticationError, CallLost, HostBusy, PermissionRefused, RemoteProtocolError
from zmqagents.scheduler.effects import Answer, Effect
from zmqagents.security.roles import Role
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import STREAM_WINDOW, Call, Flag, Hello, Home, Kind

RESUME_S = 5.0
MAX_UNREAD = 10_000


class Lobby:
    """The clients of a `World`, each at a `Line`, by its name. What a line was sent says what its client was told."""

    def __init__(self) -> None:
        self.world = World(resume_s=RESUME_S, max_unread_bytes=MAX_UNREAD)
        self.lines: dict[str, Line] = {}
        self.roles: dict[str, Role] = {"uid:0": "admin"}
        self.clients = Clients(self.world.config, self.world.dispatcher, self.carry_out, lambda: self.world.now)
        self.clients.open(self.roles.get, lambda: codec.pack({"server_id": "here"}))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in self.world.see(effects):
            if isinstance(effect, Answer) and not effect.peer.local and not effect.peer.gone:
                self.answer(effect.peer.key, effect.call_id, effect.reply)

    def answer(self, session: Session, call_id: int, reply: messages.Reply) -> None:
        self.clients.delivery.unsent.append((session, session.answer(call_id, reply)))

    def hello(self, client: str, line: str, *, user: str = "uid:0") -> Session:
        """``client`` says HELLO over the connection ``line`` and gets its seat."""
        session = self.say_hello(client, line, user=user)
        assert session is not None
        return session

    def say_hello(self, client: str, line: str, *, user: str, resume: str | None = None) -> Session | None:
        """``client`` says HELLO over the connection ``line``; the session that has that seat then."""
        client_id = client.encode().ljust(messages.CLIENT_ID_BYTES)
        options = {"resume": (resume or client).encode(), "hints": True}
        if line not in self.lines:
            self.lines[line] = Line(line, user)
        self.clients.hello(self.lines[line], Hello(0, client_id, options), self.world.now)
        session: Session | None = self.lines[line].session
        return session

    def hang_up(self, *sessions: Session) -> None:
        """Their connections break, and the roll call finds that out."""
        for session in sessions:
            assert isinstance(session.peer, Line)
            session.peer.is_cut = True
        self.clients.call_roll()
        self.see_off()

    def see_off(self) -> None:
        """What a listener has found out about connections reaches the clients."""
        for line in self.lines.values():
            if line.ended:
                self.clients.gone(line)

    def sleep(self, seconds: float) -> None:
        """Time passes; `Clients.look` is called whenever it is due, and not at other times."""
        end = self.world.now + seconds
        while self.clients.due <= end:
            self.world.now = max(self.world.now, self.clients.due) + 0.001
            self.clients.look(self.world.now)
            self.see_off()
            assert self.clients.due > self.world.now, "always due"
        self.world.now = max(end, self.world.now)

    def knows(self, session: Session) -> bool:
        """Whether the client is connected or waited for."""
        return session.seated or (session.lost and not session.caller.gone)

    def is_here(self, session: Session) -> bool:
        return session.seated and session.peer.session is session

    def last_error(self, line: str) -> Exception:
        head, body = messages.split_answer(self.lines[line].sent[-1])
        return rebuild_error(messages.Reply(head.code, body))


@pytest.fixture
def lobby() -> Lobby:
    return Lobby()


# ---------------------------------------------------------------- lost, and back


def test_who_has_come_back_may_be_silent_again(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    lobby.hang_up(ann)
    assert not lobby.is_here(ann)
    lobby.sleep(0.05)
    assert lobby.hello("ann", "2") is ann
    assert messages.split_answer(lobby.lines["2"].sent[-1])[0].flags == Flag.RESUMED
    call = lobby.world.create("a", peer=ann.caller)
    lobby.sleep(RESUME_S + 1)  # a client with nothing to say pings every 10 s
    assert lobby.is_here(ann)
    lobby.world.done(call)
    assert call.error is None


def test_who_has_come_back_stands_in_nobodys_way_to_be_let_go(lobby: Lobby) -> None:
    ann, bob = lobby.hello("ann", "1"), lobby.hello("bob", "2")
    lobby.hang_up(ann)
    lobby.hello("ann", "3")
    lobby.hang_up(bob)
    for _ in range(3):
        ann.last_seen = lobby.world.now
        lobby.sleep(RESUME_S / 2)
    assert lobby.is_here(ann)
    assert not lobby.knows(bob)


def test_clients_that_were_lost_together_are_let_go_together(lobby: Lobby) -> None:
    lost = [lobby.hello(f"client {n}", f"{n}") for n in range(100)]
    lobby.hang_up(*lost)
    lobby.sleep(RESUME_S - 1)
    late = lobby.hello("late", "late")
    lobby.hang_up(late)
    assert all(map(lobby.knows, lost))
    lobby.sleep(1.1)
    assert not any(map(lobby.knows, lost))
    assert lobby.knows(late)


def test_a_reply_that_is_made_while_replies_are_sent_is_sent_too(lobby: Lobby) -> None:
    ann, bob = lobby.hello("ann", "1"), lobby.hello("bob", "2")
    lobby.world.agents("a", "b")
    stream = lobby.world.running("a", peer=ann.caller, flags=Flag.STREAM)
    made_by_it = lobby.world.later(stream, "b")
    fetch = lobby.world.fetch(made_by_it.task_id, peer=bob.caller)
    lobby.lines["1"].room = 0
    lobby.answer(ann, 99, ok(bytes(2 * MAX_UNREAD)))  # for want of room she is dropped, and her stream with her
    lobby.clients.delivery.push_all()
    assert lobby.lines["2"].heard[1:] == [(Kind.ERROR, fetch.call_id)]


def test_a_lost_client_loses_its_streams_and_plain_calls_when_it_does_not_come_back(lobby: Lobby) -> None:
    ann, world = lobby.hello("ann", "1"), lobby.world
    world.agents("a", "b", "c")
    stream = world.running("a", peer=ann.caller, flags=Flag.STREAM)
    plain = world.running("b", peer=ann.caller)
    detached = world.running("c", peer=ann.caller, flags=Flag.DETACHED)
    lobby.hang_up(ann)
    assert (stream.t.settled, plain.t.settled, detached.t.settled) == (False, False, False)
    lobby.sleep(RESUME_S - 0.1)
    assert (stream.t.settled, plain.t.settled) == (False, False)
    lobby.sleep(0.2)
    assert (stream.t.settled, plain.t.settled, detached.t.settled) == (True, True, False)
    assert not lobby.knows(ann)
    assert lobby.clients.where() == {"clients": 0, "clients_lost": 0}


def test_more_lost_ones_than_are_waited_for_make_the_first_of_them_go(
    lobby: Lobby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_LOST", 3)
    lost = [lobby.hello(f"client {n}", f"{n}") for n in range(5)]
    for session in lost:
        lobby.hang_up(session)
    assert [lobby.knows(session) for session in lost] == [False, False, True, True, True]
    assert lobby.clients.where() == {"clients": 0, "clients_lost": 3}


def test_who_says_nothing_for_a_long_time_is_gone(lobby: Lobby) -> None:
    ann, bob = lobby.hello("ann", "1"), lobby.hello("bob", "2")
    for _ in range(4):
        lobby.sleep(SILENCE_S / 3)
        bob.last_seen = lobby.world.now
    assert (lobby.knows(ann), lobby.is_here(bob)) == (False, True)


def test_a_stream_whose_reader_has_died_does_not_wait_for_it(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    lobby.world.agent("a")
    stream = lobby.world.running("a", peer=ann.caller, flags=Flag.STREAM)
    lobby.lines["1"].is_cut = True
    lobby.sleep(10)
    assert not stream.t.settled, "nobody has said that the connection has ended"
    lobby.clients.starve(stream.t)
    lobby.sleep(2 * clients.PROBE_S)
    assert ann.lost
    lobby.sleep(RESUME_S)
    assert stream.t.settled


# ---------------------------------------------------------------- who it is


def test_a_client_that_comes_over_another_connection_leaves_the_first_one(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    token = ann.token
    assert lobby.hello("ann", "2") is ann
    assert (ann.peer, ann.token != token) == (lobby.lines["2"], True)
    assert (lobby.lines["1"].session, lobby.clients.where()["clients"]) == (None, 1)


def test_another_client_on_the_same_connection_takes_the_place_of_the_first(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    bob = lobby.hello("bob", "1")
    assert (lobby.knows(ann), lobby.is_here(bob)) == (False, True)


@pytest.mark.parametrize(("user", "resume"), [("uid:1", "ann"), ("uid:0", "guessed")])
def test_nobody_takes_the_place_of_another_client(lobby: Lobby, user: str, resume: str) -> None:
    ann = lobby.hello("ann", "1")
    lobby.roles["uid:1"] = "call"
    assert lobby.say_hello("ann", "2", user=user, resume=resume) is None
    assert lobby.is_here(ann)
    assert lobby.lines["2"].heard == []


def test_a_user_without_a_role_is_sent_away(lobby: Lobby) -> None:
    assert lobby.say_hello("eve", "1", user="key:eve:K") is None
    assert lobby.lines["1"].heard == [(Kind.GOODBYE, 0)]
    assert isinstance(lobby.last_error("1"), AuthenticationError)


def test_a_key_that_changes_its_role_or_goes_is_seen_while_its_client_is_here(lobby: Lobby) -> None:
    user = "key:bob:K"
    lobby.roles[user] = "call"
    bob = lobby.hello("bob", "1", user=user)
    lobby.world.agent("a")
    call = lobby.world.running("a", peer=bob.caller, flags=Flag.DETACHED)
    lobby.roles[user] = "admin"
    lobby.sleep(2 * ROLES_EVERY_S)
    assert bob.role == "admin"
    del lobby.roles[user]
    lobby.sleep(2 * ROLES_EVERY_S)
    assert isinstance(lobby.last_error("1"), AuthenticationError)
    assert (lobby.knows(bob), call.t.settled) == (False, True)


def test_what_peers_do_wrong_is_told_once_for_each_and_not_for_a_flood_of_them(
    lobby: Lobby, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for n in [*range(100)] * 2:
        lobby.clients.complain(Line(f"{n}"), RemoteProtocolError("nonsense"))
    assert len(caplog.records) == clients.COMPLAINTS


# ---------------------------------------------------------------- calls that come again


def again(call_id: int, *place: int) -> Call:
    """A call that comes again; ``place``: it is a stream, of which this item is needed, and so much credit granted."""
    options = {"stream": list(place)} if place else {}
    return Call(call_id, Flag.RESENT | (Flag.STREAM if place else 0), 0, "a", "m", [], options, (b"",))


def test_a_call_that_comes_again_is_answered_again_and_runs_once(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    lobby.world.agent("a")
    assert not lobby.clients.came_before(ann, again(7))
    call = lobby.world.running("a", peer=ann.caller, call_id=7)
    assert lobby.clients.came_before(ann, again(7)), "it is open"
    assert not lobby.clients.delivery.unsent
    lobby.carry_out(lobby.world.dispatcher.on_done(call.t, ok(), lobby.world.now))
    lobby.clients.delivery.push_all()
    assert lobby.clients.came_before(ann, again(7))
    lobby.clients.delivery.push_all()
    assert lobby.lines["1"].heard[1:] == [(Kind.RESULT, 7)] * 2
    ann.replies.acknowledge(8)
    assert lobby.clients.came_before(ann, again(7)), "which nobody needs any more"
    assert not lobby.clients.delivery.unsent


def test_a_reply_that_was_too_much_to_keep_is_an_error_and_its_call_does_not_run_again(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    for call_id in (1, 2):
        ann.replies.note(call_id, ok(bytes(MAX_UNREAD // 2)))
    assert lobby.clients.came_before(ann, again(1))
    lobby.clients.delivery.push_all()
    assert isinstance(lobby.last_error("1"), CallLost)


def numbers_heard(line: Line) -> list[int]:
    """The numbers of the items that a line was sent."""
    return [head.time_ms for head, _ in map(messages.split_answer, line.sent) if head.kind == Kind.CHUNK]


def test_a_stream_goes_on_at_the_item_that_its_reader_needs_and_with_the_credit_that_was_lost(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    lobby.world.agent("a")
    stream = lobby.world.running("a", peer=ann.caller, call_id=7, flags=Flag.STREAM)
    for number in range(STREAM_WINDOW):
        ann.replies.note_item(7, number, (b"x",))
    ann = lobby.hello("ann", "2")
    assert lobby.clients.came_before(ann, again(7, 11, 0))
    lobby.clients.delivery.push_all()
    assert numbers_heard(lobby.lines["2"]) == [11, 12, 13, 14, 15]
    assert not stream.t.settled


def test_a_stream_that_has_ended_while_its_reader_was_away_gives_the_rest_before_its_end(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    for number in range(3):
        ann.replies.note_item(7, number, (b"x",))
    ann.replies.note(7, ok())
    ann = lobby.hello("ann", "2")
    assert lobby.clients.came_before(ann, again(7, 1, 0))
    lobby.clients.delivery.push_all()
    heard = [(head.kind, head.time_ms) for head, _ in map(messages.split_answer, lobby.lines["2"].sent)]
    assert heard[-3:] == [(Kind.CHUNK, 1), (Kind.CHUNK, 2), (Kind.RESULT, 3)]
    ann.replies.acknowledge(8)
    assert (ann.replies.streams, ann.replies.bytes) == ({}, 0)


def test_a_stream_whose_items_were_too_much_to_keep_is_lost_with_its_connection(lobby: Lobby) -> None:
    ann = lobby.hello("ann", "1")
    lobby.world.agent("a")
    stream = lobby.world.running("a", peer=ann.caller, call_id=7, flags=Flag.STREAM)
    for number in range(3):
        ann.replies.note_item(7, number, (bytes(MAX_UNREAD // 2),))
    ann = lobby.hello("ann", "2")
    assert lobby.clients.came_before(ann, again(7, 1, 0))
    lobby.clients.delivery.push_all()
    assert isinstance(lobby.last_error("2"), CallLost)
    assert stream.t.settled
    (head, _) = messages.split_answer(lobby.lines["2"].sent[-1])
    assert head.time_ms == 1, "the reader takes it as the end"


def test_the_replies_that_are_kept_for_lost_clients_have_one_bound_for_all_of_them(lobby: Lobby) -> None:
    lost = [lobby.hello(f"ann {number}", f"{number}") for number in range(10)]
    for number, session in enumerate(lost):
        session.replies.note(1, ok(bytes(MAX_UNREAD // 2)))
        lobby.lines[f"{number}"].ended = True
        lobby.clients.gone(lobby.lines[f"{number}"])
    assert sum(session.replies.bytes for session in lost) <= MAX_UNREAD * 7 // 8
    (first,) = {session.caller.account for session in lost}
    assert first.kept_bytes == sum(session.replies.bytes for session in lost)
    back = lobby.hello("ann 0", "again")
    assert first.kept_bytes < back.replies.bytes, "it is counted for those that are lost"
    lobby.sleep(RESUME_S + 1)
    assert first.kept_bytes == 0


def test_what_a_lost_client_gets_while_it_is_away_counts_and_one_of_another_user_has_room(lobby: Lobby) -> None:
    lobby.roles["uid:1"] = "call"
    ann, bob = lobby.hello("ann", "1"), lobby.hello("bob", "2", user="uid:1")
    for session in (ann, bob):
        lobby.lines[session.peer.name].ended = True  # type: ignore[attr-defined]
        lobby.clients.gone(session.peer)
    for call_id in range(1, 20):
        lobby.answer(ann, call_id, ok(bytes(1000)))
        lobby.clients.delivery.push_all()
    assert ann.replies.bytes <= MAX_UNREAD * 7 // 8
    lobby.answer(bob, 1, ok(bytes(200)))
    lobby.clients.delivery.push_all()
    assert bob.replies.find(1) is not None


def test_at_the_end_everybody_is_told(lobby: Lobby) -> None:
    for name in ("1", "2", "3"):
        lobby.hello(f"client {name}", name)
    lobby.lines["2"].is_cut = True
    lobby.clients.close([messages.header(Kind.GOODBYE), codec.pack({})])
    assert [line.heard[-1][0] for line in lobby.lines.values()] == [Kind.GOODBYE, Kind.WELCOME, Kind.GOODBYE]


# ---------------------------------------------------------------- clients without keys


def test_clients_without_keys_are_told_apart_by_their_ids(lobby: Lobby) -> None:
    lobby.roles.update({f"insecure:{messages.client_prefix(name.ljust(10, chr(0)).encode())}": "call" for name in "ab"})
    lobby.roles["insecure"] = "call"
    ann, bob = lobby.hello("a", "1", user="insecure"), lobby.hello("b", "2", user="insecure")
    assert ann.user != bob.user
    assert ann.caller.account is not bob.caller.account
    assert lobby.hello("a", "3", user="insecure") is ann, "it is known when it comes back"


def test_a_client_without_key_and_secret_cannot_be_taken_over(lobby: Lobby) -> None:
    lobby.roles["insecure"] = "call"
    client_id = b"0123456789"
    for number in ("1", "2"):
        lobby.lines[number] = Line(number, "insecure")
        lobby.clients.hello(lobby.lines[number], Hello(0, client_id, {}), lobby.world.now)
    assert lobby.lines["1"].session is not None
    assert lobby.lines["2"].session is None


def test_a_client_is_told_where_an_agent_is_but_not_again_and_again_unless_that_changes(lobby: Lobby) -> None:
    session = lobby.hello("ada", "door")

    def hints(*homes: Home) -> int:
        for home in homes:
            lobby.clients.hint(session.caller, home)
        told, lobby.clients.delivery.unsent = lobby.clients.delivery.unsent, []
        return len(told)

    here, there = Home("cluster:shop/Counter/c1", "one:1", 1), Home("cluster:shop/Counter/c1", "two:2", 2)
    other = here._replace(agent="cluster:shop/Counter/c2")
    assert hints(here, here, other, here, other) == 2
    assert hints(there, there) == 1
    assert hints(here, there, here) == 3
    assert hints(here) == 0
    lobby.sleep(HINT_EVERY_S + 0.1)
    assert hints(here, here) == 1, "it may have lost what it was told"
    lobby.hang_up(session)
    assert hints(there) == 0


def test_a_user_of_another_member_whose_key_is_unknown_is_waited_for_a_moment_and_then_refused(lobby: Lobby) -> None:
    refusal_of, bob = lobby.clients.refusal_of, "key:bob:KEY"
    assert refusal_of("uid:7") is None
    assert [type(refusal_of(bob)) for _ in range(2)] == [HostBusy] * 2, "it was added just now, perhaps"
    lobby.sleep(NEW_KEY_S + 0.1)
    assert type(refusal_of(bob)) is PermissionRefused
    lobby.roles[bob] = "view"
    assert type(refusal_of(bob)) is PermissionRefused
    lobby.roles[bob] = "call"
    assert refusal_of(bob) is None
