"""How closely an export answers like its checkpoint: next-token distributions on held-out text, and golden prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.inference.sampling import Sampling
from engine.models.template_lock import render
from engine.models.template_metadata import choose_template
from engine.prep.formats.canonical import conversation_of
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel
    from engine.models.targets import Target

Messages = list[dict[str, str]]
Cancelled = Callable[[], None]
"""Called between two rows; raises when the work is cancelled."""

ROWS = 16
"""Held-out rows that are compared."""
POSITIONS = 32
"""Greatest number of positions of a row, spread over those that are predicted."""
LONGEST = 1024
"""Longest row in tokens; longer ones are cut."""
FARTHEST = 0.5
"""Greatest divergence in nats per token. 16-bit weights and quantised bases stay far below it."""
GOLDEN_TOKENS = 64
"""Length of the greedy replies that are compared."""

PLAIN = (
    "The library opens at nine, and on Sundays it stays closed.",
    "To make tea, boil water, pour it over the leaves and wait for three minutes.",
    "def area(width, height):\n    return width * height",
    "In 1969 two astronauts walked on the Moon while a third stayed in orbit.",
)
"""Texts for a target with neither held-out rows nor golden conversations."""


@dataclass(frozen=True)
class Text:
    """Token ids, and the place of the first that is predicted."""

    ids: list[int]
    begin: int

    @property
    def places(self) -> list[int]:
        """Positions whose next token is predicted, ascending, counted from the end: -2 predicts the last token."""
        positions = list(range(self.begin - 1 - len(self.ids), -1))
        step = max(1, -(-len(positions) // POSITIONS))
        return positions[::step]


@dataclass(frozen=True)
class ProbeSet:
    """What both sides are compared on: `texts` for distributions, `golden` conversations for greedy replies. `source`
    describes where the texts come from."""

    texts: list[Text]
    golden: list[Mapping[str, Any]]
    date: datetime | None
    """The day on which the golden conversations were rendered, for templates that write it."""
    source: str


@dataclass
class Answers:
    """One model's answers to a probe set. `distributions[i]` is [places, vocabulary], log-probabilities in float32 on
    the CPU."""

    distributions: list[Any]
    replies: list[list[int]]
    ids: list[list[int]]
    """The golden conversations as this model's tokenizer renders them."""
    texts: list[str] = field(default_factory=list)
    """The replies as text."""


def make_probes(target: Target, tokenizer: Any) -> ProbeSet:
    """Held-out rows of the target's run if they still exist, else the lock's golden conversations, else plain
    sentences."""
    recorded = json.loads(target.lock.read_text(encoding="utf-8")) if target.lock else {}
    date = datetime.fromisoformat(recorded["date"]) if recorded.get("date") else None
    golden = list(recorded.get("golden", ())) if choose_template(tokenizer.chat_template) else []
    held_out = list(_held_out(target, tokenizer))
    if held_out:
        return ProbeSet(held_out, golden, date, f"{len(held_out)} held-out rows of the run")
    if golden:
        texts = [Text(each["ids"][:LONGEST], 1) for each in golden]
        return ProbeSet(texts, golden, date, f"the {len(golden)} conversations of the template lock")
    texts = [Text(tokenizer(text).input_ids, 1) for text in PLAIN]
    return ProbeSet([text for text in texts if text.places], golden, date, f"{len(PLAIN)} plain sentences")


def _held_out(target: Target, tokenizer: Any) -> Iterator[Text]:
    """Rows of the run's test set, else of its validation set."""
    if target.run is None:
        return
    prepared = target.folder.parent.parent / "prepared.json"
    named = json.loads(prepared.read_text(encoding="utf-8")) if prepared.is_file() else {}
    path = next((Path(named[key]) for key in ("test_rows", "validation_rows") if named.get(key)), None)
    if path is None or not path.is_file():
        return
    taken = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = _read_row(json.loads(line), tokenizer)
            if text and text.places:
                yield text
                taken += 1
            if taken == ROWS:
                return


def _read_row(row: Any, tokenizer: Any) -> Text | None:
    """A conversation, of which the last reply is predicted, or plain text, all of which is. None for a row that is
    neither, or too long."""
    messages = conversation_of(row)
    if messages and messages[-1]["role"] == "assistant" and choose_template(tokenizer.chat_template):
        ids = render(tokenizer, messages, reply_follows=False)
        begin = len(render(tokenizer, messages[:-1], reply_follows=True))
        return Text(ids[:LONGEST], begin) if begin < min(len(ids), LONGEST) else None
    plain = row.get("text") if isinstance(row, dict) else None
    return Text(tokenizer(plain).input_ids[:LONGEST], 1) if isinstance(plain, str) else None


def answer_probes(
    loaded: LoadedModel, probes: ProbeSet, check: Cancelled, progress: Callable[[int, int], None]
) -> Answers:
    """Compute the answers of `loaded`."""
    import torch

    total = len(probes.texts) + len(probes.golden)
    answers = Answers([], [], [])
    for index, text in enumerate(probes.texts):
        check()
        progress(index, total)
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([text.ids], device=loaded.model.device)).logits[0]
            # Places count from the end, since an adapter with virtual tokens has more positions in front.
            answers.distributions.append(logits[text.places].float().log_softmax(-1).cpu())
    for index, golden in enumerate(probes.golden):
        check()
        progress(len(probes.texts) + index, total)
        prompt = _without_reply(golden["messages"])
        reply = loaded.generate(prompt, Sampling(max_new_tokens=GOLDEN_TOKENS))
        answers.replies.append(reply.ids)
        answers.texts.append(reply.text)
        answers.ids.append(
            render(loaded.tokenizer, golden["messages"], reply_follows=False, date=probes.date)[: len(golden["ids"])]
        )
    progress(total, total)
    return answers


def compare(probes: ProbeSet, before: Answers, after: Answers) -> dict[str, Any]:
    """`kl`: mean Kullback-Leibler divergence in nats of `after` from `before`. `top1`: share of positions with the same
    likeliest token. `positions` and `prompts`: what was compared. `golden_equal` of `golden` prompts are answered
    alike; `differences` lists the others."""
    import torch

    divergence, same, places = 0.0, 0, 0
    for old, new in zip(before.distributions, after.distributions, strict=True):
        likely = old > -torch.inf  # a token without probability adds nothing, also where `new` has none
        divergence += float((old.exp() * (old - new))[likely].sum())
        same += int((old.argmax(-1) == new.argmax(-1)).sum())
        places += len(old)
    differences = list(_differences(probes, before, after))
    return {
        "kl": (0.0 if divergence < 0 else divergence / places) if places else None,
        "top1": same / places if places else None,
        "positions": places,
        "prompts": probes.source,
        "golden": len(probes.golden),
        "golden_equal": len(probes.golden) - len(differences),
        "differences": differences,
    }


def check(figures: Mapping[str, Any], label: str) -> None:
    """Raises ProblemError when the figures of `compare` show another model than the checkpoint."""
    divergence = figures.get("kl")
    if divergence is None or divergence <= FARTHEST:  # false for a value that is not a number
        return
    raise ProblemError(
        Problem(
            code="export.disagrees",
            title=f"The export does not answer like {label}",
            cause=f"the KL divergence is {divergence:.3g} nats per token over {figures['positions']} positions, and at "
            f"most {FARTHEST:g} is allowed; the most likely token is the same at {figures['top1']:.0%}",
            hint="nothing was written; export the adapter alone (--adapter-only), and report this with the profile",
        )
    )


def _differences(probes: ProbeSet, before: Answers, after: Answers) -> Iterator[dict[str, Any]]:
    for index, golden in enumerate(probes.golden):
        prompt = _without_reply(golden["messages"])[-1]["content"]
        if after.ids[index] != golden["ids"]:
            yield {"prompt": prompt, "of": "tokens", "at": _first_difference(golden["ids"], after.ids[index])}
        elif before.replies[index] != after.replies[index]:
            yield {
                "prompt": prompt,
                "of": "reply",
                "at": _first_difference(before.replies[index], after.replies[index]),
                "was": before.texts[index],
                "is": after.texts[index],
            }


def _first_difference(first: list[int], second: list[int]) -> int:
    """The first place at which two lists differ; the length of the shorter where one begins with the other."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _without_reply(messages: Messages) -> Messages:
    """The conversation up to its last reply."""
    return messages[:-1] if len(messages) > 1 and messages[-1]["role"] == "assistant" else messages
