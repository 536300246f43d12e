"""Statistics of votes and ratings."""

from __future__ import annotations

from cockpit.state.vote_stats import count_votes, format_votes, mean_ratings, wilson_interval
from engine.protocol.messages import Judgement


def vote(left: str, right: str, word: str) -> Judgement:
    return Judgement(targets=[left, right], prompt="p", replies=["l", "r"], vote=word)


def rating(target: str, stars: int, prompt: str = "p") -> Judgement:
    return Judgement(targets=[target], prompt=prompt, replies=["r"], rating=stars)


def test_which_stood_left_makes_no_difference() -> None:
    votes = [vote("a", "b", "left"), vote("b", "a", "right"), vote("b", "a", "left"), vote("a", "b", "tie")]
    (pair,) = count_votes([*votes, vote("b", "a", "both bad"), rating("a", 3)])
    assert (pair.first, pair.wins, pair.losses, pair.ties, pair.both_bad) == ("a", 2, 1, 1, 1)


def test_the_interval_is_wilsons() -> None:
    """Against statsmodels' proportion_confint(8, 10, method="wilson"): 0.4901625, 0.9433178."""
    share, low, high = wilson_interval(8, 10)
    assert (share, round(low, 4), round(high, 4)) == (0.8, 0.4902, 0.9433)
    assert count_votes([vote("a", "b", "tie")])[0].share == (0.5, 0.0, 1.0)


def test_the_leader_is_named_first() -> None:
    (pair,) = count_votes([vote("a", "b", "right"), vote("a", "b", "right"), vote("a", "b", "left")])
    assert format_votes(pair).startswith("b 2 : 1 a · preferred in 67% of 3, 95 % interval ")


def test_the_later_rating_of_one_reply_counts() -> None:
    given = mean_ratings([rating("a", 1), rating("a", 5), rating("a", 3, "q"), rating("b", 2)])
    assert [(each.target, each.count, each.mean) for each in given] == [("a", 2, 4.0), ("b", 1, 2.0)]
    assert round(given[0].half_width, 2) == 1.96 and given[1].half_width == 0.0
