"""What votes and ratings come to, with how sure that is. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.protocol.messages import Judgement

Z = 1.96
"""Standard deviations on each side of a 95 % interval."""


@dataclass(frozen=True)
class Duel:
    """Votes between two targets. `share` is that of `first` among the votes that chose one, with its 95 % Wilson interval."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    both_bad: int

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def share(self) -> tuple[float, float, float]:
        """Share, low, high; 0.5, 0, 1 before any vote chose one."""
        if not self.decided:
            return 0.5, 0.0, 1.0
        return wilson(self.wins, self.decided)


@dataclass(frozen=True)
class Mean:
    """Ratings of one target: how many, their mean, and half the width of its 95 % interval (normal; 0 for a single rating)."""

    target: str
    count: int
    mean: float
    half: float


def wilson(wins: int, total: int) -> tuple[float, float, float]:
    """Share of `wins`, and its 95 % interval by Wilson's score (1927)."""
    share, square = wins / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return share, max(0.0, middle - half), min(1.0, middle + half)


def duels(judgements: Iterable[Judgement]) -> list[Duel]:
    """Each pair that was voted on, in the order of the first vote; which stood left makes no difference."""
    counts: dict[tuple[str, str], list[int]] = {}
    for each in judgements:
        if not each.vote or len(each.targets) != 2:
            continue
        left, right = each.targets
        swapped = (right, left) in counts
        kept = counts.setdefault((right, left) if swapped else (left, right), [0, 0, 0, 0])
        kept[
            ("right", "left", "tie", "both bad").index(each.vote)
            if swapped
            else ("left", "right", "tie", "both bad").index(each.vote)
        ] += 1
    return [Duel(*pair, *kept) for pair, kept in counts.items()]


def means(judgements: Iterable[Judgement]) -> list[Mean]:
    """Each rated target, the best first. Of two ratings of one reply the later counts."""
    ratings: dict[tuple[str, str, str], int] = {}
    for each in judgements:
        if each.rating and len(each.targets) == 1:
            ratings[(each.targets[0], each.prompt, each.replies[0])] = each.rating
    by_target: dict[str, list[int]] = defaultdict(list)
    for (target, _, _), rating in ratings.items():
        by_target[target].append(rating)
    return sorted((_mean(target, given) for target, given in by_target.items()), key=lambda each: -each.mean)


def _mean(target: str, given: Sequence[int]) -> Mean:
    count, mean = len(given), sum(given) / len(given)
    spread = math.sqrt(sum((each - mean) ** 2 for each in given) / (count - 1)) if count > 1 else 0.0
    return Mean(target, count, mean, Z * spread / math.sqrt(count))


def told_duel(duel: Duel) -> str:
    """A line, the leader first: who won how often, and how sure the share is."""
    if duel.losses > duel.wins:
        duel = Duel(duel.second, duel.first, duel.losses, duel.wins, duel.ties, duel.both_bad)
    share, low, high = duel.share
    parts = [f"{duel.first} {duel.wins} : {duel.losses} {duel.second}"]
    parts += [f"{duel.ties} tie{'s'[: duel.ties != 1]}"] if duel.ties else []
    parts += [f"{duel.both_bad} both bad"] if duel.both_bad else []
    if duel.decided:
        parts.append(f"preferred in {share:.0%} of {duel.decided}, 95 % interval {low:.0%} to {high:.0%}")
    return " · ".join(parts)


def told_mean(mean: Mean) -> str:
    sure = f" ± {mean.half:.1f}" if mean.count > 1 else ""
    return f"{mean.target}  {mean.mean:.1f}{sure} of 5 · {mean.count} rating{'s'[: mean.count != 1]}"
