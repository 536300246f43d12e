"""Why a run is slow, and whether it learns: what its metrics say, and what to change first. Pure, and torch-free.

A finding is a code with a sentence and a hint that have this run's figures. Only the figures decide; the words are for
people.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.config import card_health
from engine.protocol import journal

Point = tuple[int, float | None]

LOSS, RATE, NORM, CHANGED = "train/loss", "train/learning_rate", "train/grad_norm", "train/weights_changed"
SERIES = (LOSS, RATE, NORM)
"""The metrics that are looked at as curves; of the others, `time/…` included, the last value counts."""


class Finding(NamedTuple):
    """`code` is one of `codes.CODES`."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Evidence:
    """What is known about a run."""

    series: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """The metrics in `SERIES` by step; None for a value that was not finite."""
    latest: Mapping[str, float | None] = field(default_factory=dict)
    """The last value of each metric."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """The journal's `start` entry, with its facts and settings."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """The settings, where they can be read."""

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting of the profile, else one of those that the `start` entry has."""
        section, _, name = key.partition(".")
        found = self.profile.get(section)
        if isinstance(found, Mapping) and name in found:
            return found[name]
        return (self.fact("settings") or {}).get(key, default)

    def fact(self, name: str, default: Any = None) -> Any:
        return (self.start.get("facts") or {}).get(name, default)

    @property
    def steps(self) -> int:
        return max((points[-1][0] for points in self.series.values() if points), default=0)

    def finite(self, name: str) -> list[float]:
        return [value for _, value in self.series.get(name, ()) if value is not None and math.isfinite(value)]


def read_evidence(entries: Iterable[journal.AnyEntry], profile: Mapping[str, Any]) -> Evidence:
    """The evidence in a run's journal. What an attempt did after the step that a later one began at does not count."""
    series: dict[str, dict[int, float | None]] = {name: {} for name in SERIES}
    latest: dict[str, float | None] = {}
    start: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry, journal.Start):
            series = {name: {step: value for step, value in points.items() if step <= entry.step}
                      for name, points in series.items()}  # fmt: skip
            latest = {}
            start = {"max_steps": entry.max_steps, "step": entry.step, "facts": entry.facts, "rows": entry.rows,
                     "trained_tokens": entry.trained_tokens, "processes": entry.processes}  # fmt: skip
        elif isinstance(entry, journal.Metrics):
            latest |= entry.values
            for name in SERIES:
                if name in entry.values:
                    series[name][entry.step] = entry.values[name]
        elif isinstance(entry, journal.Evaluation):
            latest |= entry.values
    return Evidence({name: sorted(points.items()) for name, points in series.items()}, latest, start, profile)


# ── why it is slow ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Share(NamedTuple):
    code: str
    metric: str
    least: float
    words: str
    hint: str


_SHARES = (
    _Share("slow.data", "time/data", 0.15, "waiting for data", "training.workers {workers}"),
    _Share("slow.copy", "time/copy", 0.10, "copying batches to the device", "training.workers {workers}"),
    _Share("slow.reduction", "time/reduction", 0.30, "summing gradients",
           "raise training.accumulation: gradients are summed once a step"),
    _Share("slow.logging", "time/logging", 0.10, "logging", "raise logging.every_steps"),
    _Share("slow.evaluation", "time/evaluation", 0.25, "evaluating",
           "raise evaluation.every_steps, or lower evaluation.samples"),
    _Share("slow.saving", "time/saving", 0.15, "saving checkpoints", "raise checkpoint.every_steps"),
    _Share("slow.padding", "train/padding", 0.30, "of a batch is padding",
           "set data.packing to true, or training.tokens_per_batch"),
)  # fmt: skip
"""A share from which it stands out, and what to do about it."""
SLOWER = 1.25
"""A rank that needs so many times the usual stands out."""
FIRST_WORKERS = 4
"""Loader processes to begin with."""


def list_advice(
    values: Mapping[str, float | None], note: Callable[[int], str] = lambda rank: "", workers: int = 0
) -> list[Finding]:
    """What stands out in the split of a step's time, the largest share first. `note` says what is known about the
    device of a rank, such as its temperature; `workers` is how many loader processes there are, as far as is known."""
    wanted = FIRST_WORKERS if workers < FIRST_WORKERS else 2 * workers
    found: list[tuple[float, Finding]] = []
    for each in _SHARES:
        share = values.get(each.metric) or 0.0
        if share >= each.least:
            message = f"{share:.0%} {each.words}".replace("%", " %")
            found.append((share, Finding(each.code, message, each.hint.format(workers=wanted))))
    told = False
    factor, rank = values.get("time/slowest_factor") or 0.0, values.get("time/slowest_rank")
    if factor >= SLOWER and rank is not None:
        flags, heat = int(values.get("time/slowest_faults") or 0), values.get("time/slowest_temperature")
        known = card_health.describe_flags(flags, heat) or note(int(rank))
        message = f"rank {int(rank)} is {factor:.1f} × slower{f': {known}' if known else ''}"
        hint = "look at its card: `cockpit doctor health`"
        found.append((1 - 1 / factor, Finding("slow.rank", message, hint)))
        told = bool(flags & card_health.THROTTLED)
    found += _list_card_faults(values, told=told)
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]


def _list_card_faults(values: Mapping[str, float | None], *, told: bool) -> Iterator[tuple[float, Finding]]:
    """What is wrong with the cards of a run. That one throttles is not said again if it was `told` of the slowest."""
    flags, heat = int(values.get("card/faults") or 0), values.get("card/temperature")
    count = int(values.get("card/ill") or 0)
    if not flags or not count:
        return
    rank = int(values.get("card/ill_rank") or 0)
    who = f"the card of rank {rank}" if count == 1 else f"{count} cards, that of rank {rank} among them,"
    if flags & card_health.BROKEN:
        words = card_health.describe_flags(flags & card_health.BROKEN)
        yield 1.0, Finding("device.unreliable", f"{who} reports {words}", "see `cockpit doctor health`, and change it")
    if flags & card_health.THROTTLED and not told:
        words = f"{who} {'is' if count == 1 else 'are'} {card_health.describe_flags(card_health.THROTTLED, heat)}"
        yield 0.01, Finding("slow.throttled", words, "check its cooling and its power: `cockpit doctor health`")
    if flags & card_health.LINK:
        words = f"{who} {'has' if count == 1 else 'have'} a PCIe link below its best"
        yield 0.005, Finding("slow.link", words, "seat it again, or use another slot: `cockpit doctor health`")


# ── whether it learns ──────────────────────────────────────────────────────────────────────────────────────────────

FEW = 12
"""Points that a trend needs."""
DIVERGED, AT_FIRST = 1.25, 2.0
"""The last loss is so many times the best one, or so many times the very first, which may be that of easy rows."""
EXPLODED, EXPLODING = 10.0, 0.05
"""A gradient norm is so many times the first one, and so many times what it is clipped to; in this share of steps."""
VANISHED = 1e-7
CLIPPED, FAR_ABOVE = 0.8, 3.0
"""The share of clipped steps, and the usual norm in units of what it is clipped to."""
FLAT, LONG, EARLY = 0.03, 100, 20
"""A relative change of the loss that is none, in so many points or more, compared with the first of them."""
LEARNT = 0.05
"""A loss that need not fall further."""
MASKED, CUT = 0.2, 0.5
"""The share of rows without a token that is trained, and the share of rows that `data.max_length` cuts."""
STUB = 1.5
"""Trained tokens of a row: fewer are no reply, which has at least a token and the end of the turn. What share of all
tokens is trained says nothing: a template must mask prompts, however long they are."""
DUPLICATES = 0.1
STILL = 0.01
"""The share of weights that have another value than at the beginning."""
NO_RATE = 1e-9
ONLINE = ("grpo", "rloo")
"""Methods whose loss does not tell whether they learn."""


def diagnose(evidence: Evidence) -> list[Finding]:
    """Everything that is wrong, what to change first at the top: what makes the rest meaningless comes before it."""
    checks = (
        _check_masked,
        _check_finite,
        _check_rate,
        _check_diverging,
        _check_still,
        _check_gradient,
        _check_clipped,
        _check_flat,
        _check_duplicates,
    )
    found = [finding for check in checks for finding in check(evidence)]
    workers = evidence.setting("training.workers")
    return [*found, *list_advice(evidence.latest, workers=workers if isinstance(workers, int) else 0)]


def _check_masked(evidence: Evidence) -> Iterator[Finding]:
    # Packed rows are counted one by one, as those that are left out are; older journals know the packs alone.
    rows = evidence.fact("rows_kept") or evidence.start.get("rows") or 0
    trained = evidence.start.get("trained_tokens") or 0
    masked, cut = evidence.fact("rows_masked") or 0, evidence.fact("rows_truncated") or 0
    every = rows + masked
    if masked and masked >= MASKED * every:
        yield Finding(
            "learning.masked",
            f"{masked:,} of {every:,} rows have no token that is trained ({100 * masked / every:.0f} %)",
            "raise data.max_length, so that replies are not cut off; look at a row on the data screen",
        )
    elif rows and cut >= CUT * every and 0 < trained < STUB * rows:
        yield Finding(
            "learning.masked",
            f"{trained / rows:.1f} tokens of a row are trained: {cut:,} of {every:,} rows are cut off in their replies",
            "raise data.max_length; look at a row on the data screen",
        )


def _check_finite(evidence: Evidence) -> Iterator[Finding]:
    points = evidence.series.get(LOSS, ())
    wrong = [step for step, _ in itertools.takewhile(lambda point: not _is_finite(point[1]), reversed(points))]
    if wrong:
        yield Finding(
            "learning.not_finite",
            f"the loss is not finite since step {wrong[-1]:,}",
            f"resume from a checkpoint before it with {_lower_rate(evidence)}, and train in bfloat16 or float32",
        )


def _check_rate(evidence: Evidence) -> Iterator[Finding]:
    rates, wanted = evidence.finite(RATE), evidence.setting("training.learning_rate")
    total = evidence.start.get("max_steps") or 0
    warmup = evidence.setting("training.warmup") or 0
    warmup = int(warmup) if warmup >= 1 else math.ceil(warmup * total)
    if rates and max(rates) < NO_RATE:
        yield Finding(
            "learning.rate_zero",
            f"the learning rate was never above {max(rates):.2g}: no weight moves",
            "set training.learning_rate to 2e-4 for an adapter, 1e-5 for all weights",
        )
    elif rates and wanted and max(rates) < 0.9 * wanted and warmup >= total > 0:
        yield Finding(
            "learning.rate_unreached",
            f"the learning rate has only come to {max(rates):.2g} of {wanted:.2g}: warm-up takes {warmup:,} of "
            f"{total:,} steps",
            "lower training.warmup, or train for longer",
        )


def _check_diverging(evidence: Evidence) -> Iterator[Finding]:
    losses, norms = _list_losses(evidence), evidence.finite(NORM)
    limit = evidence.setting("training.max_grad_norm") or 1.0
    quarters = _quarters(losses)
    best = min(*quarters, losses[0] * AT_FIRST / DIVERGED) if quarters else 0.0
    if quarters and quarters[-1] > DIVERGED * best and quarters[-1] - best > LEARNT:
        yield Finding(
            "learning.diverging",
            f"the loss rises: {quarters[-1]:.3g} now, {min(*quarters, losses[0]):.3g} before",
            f"{_lower_rate(evidence)}, and raise training.warmup",
        )
    bound = EXPLODED * max(limit, norms[0] if norms else 0.0)
    above = [norm for norm in norms if norm > bound]
    if len(above) >= max(3, EXPLODING * len(norms)):
        yield Finding(
            "learning.gradient_exploding",
            f"the gradient's norm explodes: up to {max(above):.3g}, {norms[0]:.3g} at first",
            f"{_lower_rate(evidence)}, and raise training.warmup",
        )


def _check_still(evidence: Evidence) -> Iterator[Finding]:
    changed, rates = evidence.latest.get(CHANGED), evidence.finite(RATE)
    done = evidence.steps - (evidence.start.get("step") or 0)
    if changed is not None and changed < STILL and done >= FEW and rates and max(rates) >= NO_RATE:
        rounded = evidence.setting("training.masters") != "float32"
        yield Finding(
            "learning.weights_still",
            f"{100 * changed:.2g} % of the trained weights have changed since the attempt began",
            f"{'set training.masters to float32, or ' * rounded}raise training.learning_rate: updates are lost in "
            "rounding",
        )


def _check_gradient(evidence: Evidence) -> Iterator[Finding]:
    norms = evidence.finite(NORM)[-FEW:]
    if len(norms) >= FEW // 2 and median(norms) < VANISHED:
        yield Finding(
            "learning.gradient_vanishing",
            f"the gradient's norm is {median(norms):.2g}: there is nothing to learn from these rows",
            "look at what is trained of a row on the data screen, and at adapter.targets",
        )


def _check_clipped(evidence: Evidence) -> Iterator[Finding]:
    limit, norms = evidence.setting("training.max_grad_norm") or 0.0, evidence.finite(NORM)
    if not limit or len(norms) < FEW:
        return
    share = sum(norm > limit for norm in norms) / len(norms)
    if share >= CLIPPED and median(norms) > FAR_ABOVE * limit:
        yield Finding(
            "learning.clipped",
            f"{100 * share:.0f} % of steps are clipped to {limit:g}; the usual norm is {median(norms):.3g}",
            f"raise training.max_grad_norm to {2 * median(norms):.2g}, or use larger batches",
        )


def _check_flat(evidence: Evidence) -> Iterator[Finding]:
    losses = _list_losses(evidence)
    quarters = _quarters(losses)
    if not quarters or len(losses) < LONG or min(quarters) < LEARNT:
        return
    early = median(losses[:EARLY])
    if max(*quarters, early) - min(*quarters, early) < FLAT * early:
        rate = evidence.setting("training.learning_rate")
        higher = f" to {3 * rate:.1g}" if rate else ""
        yield Finding(
            "learning.flat",
            f"the loss does not move: {early:.4g} at first, {quarters[-1]:.4g} now",
            f"raise training.learning_rate{higher}; look whether the rows are what they should be",
        )


def _check_duplicates(evidence: Evidence) -> Iterator[Finding]:
    share = evidence.fact("duplicates") or 0.0
    if share >= DUPLICATES:
        yield Finding(
            "learning.duplicates",
            f"{100 * share:.0f} % of the training rows repeat another one",
            "set data.dedup: repeated rows are learnt by heart",
        )


def _list_losses(evidence: Evidence) -> list[float]:
    """The losses, of methods that lower them; the loss of methods that sample is about 0 from first to last."""
    kind = evidence.fact("method") or evidence.setting("method.kind")
    return [] if kind in ONLINE else evidence.finite(LOSS)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def median(values: Sequence[float]) -> float:
    """The upper median; `statistics`, which every verb would have to import, takes as long as many verbs."""
    return sorted(values)[len(values) // 2]


def _quarters(values: Sequence[float]) -> list[float]:
    """The medians of the quarters of a curve; empty for one that is too short for a trend."""
    if len(values) < FEW:
        return []
    size = len(values) / 4
    return [median(values[int(at * size) : int((at + 1) * size)]) for at in range(4)]


def _lower_rate(evidence: Evidence) -> str:
    rate = evidence.setting("training.learning_rate") or max(evidence.finite(RATE), default=0.0)
    return f"lower training.learning_rate to {rate / 5:.1g}" if rate else "lower training.learning_rate"
