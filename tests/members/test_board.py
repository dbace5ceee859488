"""Whether a wait of another process goes on, as that shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqagents.members.board import PLACES, Board, goes_on
from zmqagents.wire.messages import Place


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def begun(board: Board) -> Place:
    place = board.begin()
    assert place is not None
    return place


def test_a_wait_goes_on_from_its_begin_to_its_end(board: Board) -> None:
    pid, one, other = os.getpid(), begun(board), begun(board)
    assert goes_on(pid, one)
    board.end(one)
    assert (goes_on(pid, one), goes_on(pid, other)) == (False, True)
    third = begun(board)
    assert third.slot == one.slot
    assert (goes_on(pid, one), goes_on(pid, third)) == (False, True)


def test_there_are_only_so_many_places_and_each_can_be_had_again(board: Board) -> None:
    places = [begun(board) for _ in range(PLACES)]
    assert board.begin() is None
    assert len({place.slot for place in places}) == PLACES
    board.end(places[17])
    assert begun(board).slot == places[17].slot


def test_a_board_that_is_closed_takes_the_end_of_a_wait_and_is_opened_by_the_next_one(board: Board) -> None:
    one = begun(board)
    board.close()
    board.end(one)
    assert goes_on(os.getpid(), begun(board))


def test_what_cannot_be_seen_is_believed_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    os.mkfifo(tmp_path / "fifo")
    pid = os.getpid()
    with open(tmp_path / "file", "rb") as short, open(os.open(tmp_path / "fifo", os.O_RDWR), "rb") as fifo:
        for file in (short, fifo):
            assert goes_on(pid, Place(file.fileno(), 0, 1))
            assert goes_on(pid, Place(file.fileno(), 2**61, 1))
    assert goes_on(pid, Place(10_000, 0, 1))
    assert goes_on(0, Place(0, 0, 1)), "no process"


def test_no_program_inherits_a_board(board: Board) -> None:
    assert not os.get_inheritable(begun(board).fd)
