from __future__ import annotations

import pytest

from engine.protocol.states import ENDED, LIVE, STATES, TRANSITIONS, move


def test_the_table_is_closed_and_every_state_can_be_reached() -> None:
    assert set(TRANSITIONS.values()) == set(STATES) == LIVE | ENDED
    assert {before for before, _ in TRANSITIONS} == {None, *STATES}


def test_a_move_that_is_not_in_the_table_says_what_is() -> None:
    assert move(None, "submitted") == "queued"
    with pytest.raises(ValueError, match=r"a completed run cannot take 'pause' \(it can take: resume\)"):
        move("completed", "pause")
