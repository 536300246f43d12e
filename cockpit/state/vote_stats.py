"""Statistics of votes and ratings, with their confidence intervals. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cockpit.language.translate import tr
from engine.protocol.messages import Judgement

Z = 1.96
"""Standard deviations on each side of a 95 % interval."""


@dataclass(frozen=True)
class PairVotes:
    """Votes between two targets. `share` is that of `first` among the votes that chose one, with its 95 % Wilson
    interval."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    both_bad: int

    @property
    def decided(self) -> int:
        """Votes that chose one of the two."""
        return self.wins + self.losses

    @property
    def share(self) -> tuple[float, float, float]:
        """Share, low, high; 0.5, 0, 1 before any vote chose one."""
        if not self.decided:
            return 0.5, 0.0, 1.0
        return wilson_interval(self.wins, self.decided)


@dataclass(frozen=True)
class MeanRating:
    """Ratings of one target: their count, their mean, and half the width of its 95 % interval (normal; 0 for a single
    rating)."""

    target: str
    count: int
    mean: float
    half_width: float


def wilson_interval(wins: int, total: int) -> tuple[float, float, float]:
    """Share of `wins`, and its 95 % interval by Wilson's score (1927)."""
    share, square = wins / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return share, max(0.0, middle - half), min(1.0, middle + half)


def count_votes(judgements: Iterable[Judgement]) -> list[PairVotes]:
    """The votes on each pair, in the order of the first vote. Which target was on the left makes no difference."""
    counts: dict[tuple[str, str], list[int]] = {}
    for each in judgements:
        if not each.vote or len(each.targets) != 2:
            continue
        left, right = each.targets
        swapped = (right, left) in counts
        pair = (right, left) if swapped else (left, right)
        outcomes = ("right", "left", "tie", tr("both bad")) if swapped else ("left", "right", "tie", tr("both bad"))
        counts.setdefault(pair, [0, 0, 0, 0])[outcomes.index(each.vote)] += 1
    return [PairVotes(*pair, *numbers) for pair, numbers in counts.items()]


def mean_ratings(judgements: Iterable[Judgement]) -> list[MeanRating]:
    """Each rated target, the best first. Of two ratings of the same reply the later one counts."""
    ratings: dict[tuple[str, str, str], int] = {}
    for each in judgements:
        if each.rating and len(each.targets) == 1:
            ratings[(each.targets[0], each.prompt, each.replies[0])] = each.rating
    by_target: dict[str, list[int]] = defaultdict(list)
    for (target, _, _), rating in ratings.items():
        by_target[target].append(rating)
    return sorted((_mean_rating(target, values) for target, values in by_target.items()), key=lambda each: -each.mean)


def _mean_rating(target: str, ratings: Sequence[int]) -> MeanRating:
    count, mean = len(ratings), sum(ratings) / len(ratings)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in ratings) / (count - 1)) if count > 1 else 0.0
    return MeanRating(target, count, mean, Z * deviation / math.sqrt(count))


def format_votes(pair: PairVotes) -> str:
    """One line, the leader first: the votes, and the leader's share with its interval."""
    if pair.losses > pair.wins:
        pair = PairVotes(pair.second, pair.first, pair.losses, pair.wins, pair.ties, pair.both_bad)
    share, low, high = pair.share
    parts = [f"{pair.first} {pair.wins} : {pair.losses} {pair.second}"]
    parts += [tr("{ties} tie{plural}", ties=pair.ties, plural="s"[: pair.ties != 1])] if pair.ties else []
    parts += [tr("{both_bad} both bad", both_bad=pair.both_bad)] if pair.both_bad else []
    if pair.decided:
        parts.append(
            tr(
                "preferred in {share:.0%} of {decided}, 95 % interval {low:.0%} to {high:.0%}",
                share=share,
                decided=pair.decided,
                low=low,
                high=high,
            )
        )
    return " · ".join(parts)


def format_rating(rating: MeanRating) -> str:
    interval = f" ± {rating.half_width:.1f}" if rating.count > 1 else ""
    return tr(
        "{target}  {mean:.1f}{interval} of 5 · {count} rating{plural}",
        target=rating.target,
        mean=rating.mean,
        interval=interval,
        count=rating.count,
        plural="s"[: rating.count != 1],
    )
