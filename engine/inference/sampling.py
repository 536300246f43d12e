"""How the next token is chosen: each row of a batch by its own settings, so that no reply depends on its neighbours.

A seeded row draws by a number between 0 and 1: a hash of its seed and of the place of the token in the reply (see
`_draw_numbers`). So a draw has no state, the rows of a batch are drawn by the same few operations whatever their
number, and every device draws alike.

Settings act in the order and by the arithmetic of transformers' logits processors (tested against them): repetition
penalty, n-grams, schema, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, Protocol, TypedDict

from pydantic import ValidationError

from engine.config.sampling import PRESETS, SamplingOptions, find_preset
from engine.protocol.text import did_you_mean, name_kind

__all__ = ["PRESETS", "Grammar", "Row", "Sampling", "choose", "make_sampling", "open_row"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; `engine.config.sampling` says what the fields mean.

    `temperature` 0 is greedy: top-k, top-p, min-p and the seed have no effect. `schema` is a JSON schema that the reply
    fits.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, as keywords of a call."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    no_repeat_ngram: int | None
    seed: int | None
    stop: str | Sequence[str]
    schema: Mapping[str, Any] | None


_NAMES = tuple(each.name for each in fields(Sampling))


def change_sampling(sampling: Sampling, changes: SamplingFields) -> Sampling:
    """`sampling` with some fields changed; a field that is None goes back to its default.

    Raises TypeError for a name that is no field, ValueError for a value that a field cannot have.
    """
    for name in changes:
        if name not in _NAMES:
            raise TypeError(
                f"{name!r} is no setting of sampling{did_you_mean(name, _NAMES)}; they are {', '.join(_NAMES)}"
            )
    return make_sampling({**asdict(sampling), **changes}) if changes else sampling


def make_sampling(request: Mapping[str, Any]) -> Sampling:
    """The settings of a request: those of its `preset`, changed by those that it names.

    Other keys are ignored, and None counts as absent. Raises SettingError, a ValueError, for a value that a setting
    cannot have.
    """
    named = {name: value for name in (*_NAMES, "preset") if (value := request.get(name)) is not None}
    schema = named.pop("schema", None)
    stop = named.get("stop", [])
    settings = (
        find_preset(named.pop("preset", "greedy")) | named | {"stop": [stop] if isinstance(stop, str) else [*stop]}
    )
    if schema is not None and not isinstance(schema, Mapping):
        raise ValueError(f"schema is a JSON schema, an object, not {name_kind(schema)}")
    try:
        checked = SamplingOptions.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingError(name, f"{first['msg'].removeprefix('Input ')}, not {first['input']!r:.80}") from None
    if not all(checked.stop):
        raise SettingError("stop", "holds an empty text, before which every reply would end")
    return Sampling(**(checked.model_dump() | {"stop": tuple(checked.stop), "schema": schema}))


LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 1e-5, 1e6
"""Beyond these, the quotients are no numbers of 32 bits any more, while the choice of a token does not change."""
LEAST_PENALTY, GREATEST_PENALTY = 1e-6, 1e6
"""The same of the penalty of repetition."""


class SettingError(ValueError):
    """A value that a setting cannot have. `setting` is its name, `reason` what is wrong, without the name."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting} {reason}")
        self.setting, self.reason = setting, reason


class Grammar(Protocol):
    """Keeps a reply to a schema, token by token."""

    def mask(self, logits: Any) -> None:
        """Set the `[vocabulary]` logits of tokens that cannot come next to -inf, in place."""

    def accept(self, token: int) -> None:
        """Advance past this token."""


@dataclass
class Row:
    """One reply being generated. `seed` draws its tokens; None: torch's default generator of the device."""

    sampling: Sampling
    history: list[int]
    """Prompt and reply."""
    seed: int | None = None
    grammar: Grammar | None = None
    grammar_after: tuple[int, ...] = ()
    """Tokens after which the grammar begins; none: at once."""
    prompt_tokens: int = 0
    _seen: Any = None
    """[vocabulary] of bools: the tokens in `history`."""
    _followers: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    """The tokens that followed each sequence of `no_repeat_ngram` - 1 tokens."""
    _read: int = 0
    """How many tokens of `history` are in the two above."""

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the likeliest, whatever came before."""
        sampling = self.sampling
        return sampling.temperature == 0 and not self.adjusts_logits

    @property
    def adjusts_logits(self) -> bool:
        """Whether what came before changes the logits."""
        sampling = self.sampling
        return bool(sampling.repetition_penalty != 1 or sampling.no_repeat_ngram or self.grammar)

    def take(self, token: int) -> None:
        """Append the token that was chosen."""
        self.history.append(token)
        if self.grammar is None:
            return
        if self.grammar_after:
            if (
                tuple(self.history[max(self.prompt_tokens, len(self.history) - len(self.grammar_after)) :])
                == self.grammar_after
            ):
                self.grammar_after = ()
        else:
            self.grammar.accept(token)

    def adjust(self, logits: Any) -> None:
        """Change the float `[vocabulary]` logits in place according to what came before."""
        import torch

        self._look_back(logits)
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            penalty = min(max(sampling.repetition_penalty, LEAST_PENALTY), GREATEST_PENALTY)
            penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits.copy_(torch.where(self._seen, penalised, logits))
        banned = self._banned()
        before = logits[banned] if banned else None
        if banned:
            logits[banned] = -torch.inf
        if self.grammar is not None and not self.grammar_after:
            self.grammar.mask(logits)
        if banned and bool(
            (logits == -torch.inf).all()
        ):  # a schema, and a reply at all, take precedence over repetition
            logits[banned] = before
            if self.grammar is not None and not self.grammar_after:
                self.grammar.mask(logits)

    def _banned(self) -> list[int]:
        size = self.sampling.no_repeat_ngram
        if not size or len(self.history) + 1 < size:
            return []
        return sorted(self._followers.get(tuple(self.history[len(self.history) - size + 1 :]), ()))

    def _look_back(self, logits: Any) -> None:
        """Take account of what was added to the history since the last call."""
        import torch

        new = self.history[self._read :]
        if self.sampling.repetition_penalty != 1:
            if self._seen is None:
                self._seen = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
            # Some models embed more tokens than they can generate.
            self._seen[[token for token in new if token < len(logits)]] = True
        if size := self.sampling.no_repeat_ngram:
            for end in range(max(self._read, size - 1), len(self.history)):
                start = end - size + 1
                self._followers.setdefault(tuple(self.history[start:end]), set()).add(self.history[end])
        self._read = len(self.history)


def open_row(
    sampling: Sampling, prompt: Sequence[int], grammar: Grammar | None = None, grammar_after: Sequence[int] = ()
) -> Row:
    """A row before its first token, with a random seed where it has none."""
    seed = None
    if sampling.temperature > 0:
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    return Row(sampling, [*prompt], seed, grammar, tuple(grammar_after), len(prompt))


def choose(logits: Any, rows: Sequence[Row], failed: dict[int, Exception] | None = None) -> Any:
    """`[rows, vocabulary]` logits -> `[rows]` token ids, which are appended to the rows.

    A row's token depends on its own logits and settings alone; rows without a seed are drawn together. The errors of
    rows that cannot go on are put into `failed` by their places, and raised where it is None.
    """
    import torch

    errors: dict[int, Exception] = {} if failed is None else failed
    bad = None
    if all(row.is_greedy for row in rows):
        chosen = logits.argmax(-1)
    else:
        logits = logits.float().clone()
        for place, row in enumerate(rows):
            if row.adjusts_logits:
                _attempt(errors, place, partial(row.adjust, logits[place]))
        chosen = logits.argmax(-1)
        sampled = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
        if sampled:
            places = torch.tensor(sampled, device=chosen.device)
            warped = _warp(logits[places], [rows[place].sampling for place in sampled])
            drawn, out = _draw(warped, [rows[place] for place in sampled])
            chosen[places] = drawn
            bad = torch.zeros_like(chosen).index_put_((places,), out.long())
    tokens, wrong = _fetch(chosen, bad)  # the one place where the host waits for the device
    errors.update((place, ValueError("the logits are no numbers")) for place in wrong)
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if place not in errors:
            _attempt(errors, place, partial(row.take, token))
    if failed is None and errors:
        raise next(iter(errors.values()))
    return chosen


def _fetch(chosen: Any, bad: Any) -> tuple[list[int], list[int]]:
    """The chosen tokens, and the places where `bad` is not 0, in one transfer."""
    if bad is None:
        return chosen.tolist(), []
    import torch

    tokens, marks = torch.stack([chosen, bad]).tolist()
    return tokens, [place for place, mark in enumerate(marks) if mark]


def _attempt(errors: dict[int, Exception], place: int, act: Callable[[], None]) -> None:
    """Do what concerns one row alone, and keep its error: a grammar or an adjustment may fail in any way."""
    try:
        act()
    except Exception as error:  # noqa: BLE001
        errors[place] = error


def _draw(logits: Any, rows: Sequence[Row]) -> tuple[Any, Any]:
    """`[rows]` token ids, and which rows have logits that are no numbers, which would end the draw of all."""
    import torch

    probabilities = logits.softmax(-1)
    bad = ~(probabilities.sum(-1) > 0)
    probabilities = probabilities.masked_fill(bad[:, None], 1.0)
    seeded = [place for place, row in enumerate(rows) if row.seed is not None]
    if not seeded:
        return torch.multinomial(probabilities, 1).squeeze(1), bad
    if len(seeded) == len(rows):
        return _draw_seeded(probabilities, rows), bad
    drawn = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    others = [place for place, row in enumerate(rows) if row.seed is None]
    drawn[others] = torch.multinomial(probabilities[others], 1).squeeze(1)
    drawn[seeded] = _draw_seeded(probabilities[seeded], [rows[place] for place in seeded])
    return drawn, bad


def _draw_seeded(probabilities: Any, rows: Sequence[Row]) -> Any:
    """`[rows]` token ids: for each row the first token at which the sum of probabilities exceeds its number."""
    import torch

    places = [len(row.history) - row.prompt_tokens for row in rows]
    numbers = torch.from_numpy(_draw_numbers([row.seed or 0 for row in rows], places))
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64
    sums = probabilities.to(wide).cumsum(-1)
    wanted = numbers.to(wide).to(sums.device)[:, None] * sums[:, -1:]
    drawn = torch.searchsorted(sums, wanted, right=True).clamp(max=sums.shape[-1] - 1)
    # Sums in another order may round to a token that is excluded.
    found = torch.where(probabilities.gather(1, drawn) > 0, drawn, probabilities.argmax(-1, keepdim=True))
    return found.squeeze(1)


def _draw_numbers(seeds: Sequence[int], places: Sequence[int]) -> Any:
    """Numbers in [0, 1) of 53 bits, one for each seed and place of a token in its reply.

    That is splitmix64 (Steele, Lea, Flood 2014), whose state is begun by the mixed seed, at that place: neighbouring
    seeds and places have independent numbers.
    """
    import numpy as np

    begun = _mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64) + np.uint64(_STEP))
    mixed = _mix(begun + (np.array(places, dtype=np.uint64) + np.uint64(1)) * np.uint64(_STEP))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


_STEP = 0x9E3779B97F4A7C15


def _mix(values: Any) -> Any:
    """The output function of splitmix64, of an array of 64 bits."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _warp(logits: Any, samplings: Sequence[Sampling]) -> Any:
    """Apply temperature, top-k, top-p and min-p of each row; logits of excluded tokens become -inf."""
    import torch

    def column(values: Sequence[float]) -> Any:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    bounded = [min(max(each.temperature, LEAST_TEMPERATURE), GREATEST_TEMPERATURE) for each in samplings]
    logits = logits / column(bounded)
    size = logits.shape[-1]
    least = min(each.top_k or size for each in samplings)
    kept = size
    if least < size:
        counts = [min(each.top_k or size, size) for each in samplings]
        highest = logits.topk(max(count for count in counts if count < size), -1).values
        places = torch.tensor([min(count, highest.shape[-1]) for count in counts], device=logits.device)[:, None] - 1
        bounds = highest.gather(1, places)
        bounds[torch.tensor([count == size for count in counts], device=logits.device)] = -torch.inf
        logits = logits.masked_fill(logits < bounds, -torch.inf)  # ties with the last one stay, too
        kept = int((logits > -torch.inf).sum(-1).max())
    if any((each.top_p or 1) < 1 for each in samplings):
        likeliest, ids = logits.topk(kept, -1)
        ascending = likeliest.flip(-1).softmax(-1).cumsum(-1).flip(-1)
        out = ascending <= 1 - column([each.top_p or 1 for each in samplings])
        out[:, 0] = False
        out[torch.tensor([(each.top_p or 1) == 1 for each in samplings], device=logits.device)] = False
        logits = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, out), -torch.inf)
    if any(each.min_p for each in samplings):
        probabilities = logits.softmax(-1)
        shares = column([each.min_p or 0 for each in samplings]) * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < shares, -torch.inf)
    return logits
