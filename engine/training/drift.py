"""How far the model has moved from its base, at each evaluation (`evaluation.drift`).

The neutral prompts and texts of `data/drift/neutral.jsonl` have nothing to do with what is trained. The base answers
the prompts once, greedily, before the first step: with the adapter off, or with the weights as they are then. Of each
token of its answers and of the texts, the base's `TOP` likeliest tokens are kept with their log-probabilities, in the
run's `drift.npz`; the rest of the vocabulary counts as one more token. (So the divergence is a lower bound, by the
data-processing inequality, and a tight one.) An evaluation is then one forward pass over a few thousand tokens, and
the replies to `SPOKEN` prompts:

drift_kl            divergence of the model from the base, in nats for a token: KL(base ‖ model)
drift_perplexity    of the texts
drift_changed       share of prompts whose greedy reply is no longer the base's (in its first `REPLY` tokens): where the
                    model would choose another token anywhere along it
drift_stops         share of replies that end by themselves within `SPOKEN_TOKENS`
drift_format        share of replies without a mark of the chat template in them, and without endless repetition
drift_language      share of replies in the language of the prompt
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from engine.config.bundled import find_bundled
from engine.inference.generate import sample_batch
from engine.inference.sampling import Sampling
from engine.metrics import drift as names
from engine.models.template_lock import render
from engine.models.template_metadata import choose_template
from engine.protocol import attempt_fence
from engine.training import memory

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

FILE = "drift.npz"
TOP, REPLY = 64, 32
SPOKEN, SPOKEN_TOKENS = 8, 64
T = TypeVar("T")
_HAN = re.compile(r"[\u3400-\u9fff]")
_MARKS = re.compile(r"<\|[^|]*\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>")


class Item(NamedTuple):
    """A text, or a prompt with the base's reply: its tokens, and the first one whose probability counts."""

    prompt: bool
    ids: list[int]
    start: int


class Kept(NamedTuple):
    """What is kept of an item's counted tokens: the base's likeliest tokens, and their log-probabilities."""

    tokens: Any
    values: Any


class DriftMeter:
    """Every rank calls every method at the same step; the ranks share the items."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop, self._job = loop, loop.job
        options = loop.job.profile.evaluation
        self.enabled = options.drift and loop.job.tokenizer is not None and not loop.job.simulated
        self._limit, self._action = options.drift_limit, options.drift_action
        self._items: list[Item] = []
        self._kept: list[Kept] = []
        self._warned = False

    def begin(self) -> None:
        """Read what is kept of the base, or compute it: called before the first step of an attempt."""
        import torch

        if not self.enabled or self._items:
            return
        if kept := self._job.ranks.broadcast(self._load() if self._job.ranks.first else None):
            self._items, self._kept = kept
            return
        loop = self._loop
        adapter = hasattr(loop.model, "disable_adapter")
        if loop.step and not adapter:
            self.enabled = False
            loop.reporter.warn(
                code="evaluation.no_drift",
                step=loop.step,
                message=f"drift is not measured: all weights are trained, and {FILE} with the base's answers from "
                "before the first step is not there, or damaged",
                hint="nothing to do; a new run measures it from its first step on",
            )
            return
        with loop.reporter.in_phase("evaluating", "the base, for drift"):
            loop.model.eval()
            try:
                with torch.no_grad(), self._job.device.autocast(), self._without_adapter(adapter):
                    loop.method.expect_plain_batches()
                    self._items = self._make_items()
                    self._kept = self._share(self._keep)
            finally:
                loop.model.train()
        self._save()

    def measure(self) -> dict[str, float]:
        """The metrics by journal names. The model is in evaluation mode, without gradients."""
        if not self.enabled or not self._items:
            return {}
        found = self._share(self._compare)
        divergence = sum(each[0] for each in found) / max(1, sum(each[1] for each in found))
        texts = [each for item, each in zip(self._items, found, strict=True) if not item.prompt]
        prompts = [each for item, each in zip(self._items, found, strict=True) if item.prompt]
        loss = sum(each[2] for each in texts) / max(1, sum(each[1] for each in texts))
        values = {
            names.KL: divergence,
            names.PERPLEXITY: math.exp(min(loss, 700.0)),
            names.CHANGED: sum(each[3] for each in prompts) / max(1, len(prompts)),
            **self._judge_manners(),
        }
        return {f"eval/{name}": value for name, value in values.items()}

    def judge(self, values: dict[str, Any]) -> str:
        """Warn where the drift is beyond its limit; returns the reason to stop if that is what the profile wants."""
        value = values.get(f"eval/{names.KL}")
        if self._limit is None or value is None or value <= self._limit:  # NaN is beyond any limit
            return ""
        reason = f"drift_kl is {value:.3g}, beyond evaluation.drift_limit {self._limit:g}"
        if self._action == "stop":
            return reason
        if not self._warned:
            self._warned = True
            self._loop.reporter.warn(
                code="evaluation.drift",
                step=self._loop.step,
                message=f"{reason}: the model answers other things than its data otherwise than the base",
                hint="a smaller learning rate, fewer steps or some general rows in the data keep it closer",
            )
        return ""

    # ── the base ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _path(self) -> Any:
        return self._job.run.path / FILE

    def _without_adapter(self, adapter: bool) -> Any:
        return self._loop.model.disable_adapter() if adapter else nullcontext()

    def _make_items(self) -> list[Item]:
        prompts = [self._prompt_ids(row["text"]) for row in read_rows("prompt")]
        replies = self._speak(prompts, REPLY)
        tokenizer = self._job.tokenizer
        texts = [tokenizer(row["text"]).input_ids for row in read_rows("text")]
        return [
            *(Item(True, [*ids, *reply], len(ids)) for ids, reply in zip(prompts, replies, strict=True) if reply),
            *(Item(False, ids, 1) for ids in texts if len(ids) > 1),
        ]

    def _keep(self, number: int) -> Kept:
        log_probs = self._log_probs(self._items[number])
        found = log_probs.topk(min(TOP, log_probs.shape[-1]))
        return Kept(found.indices.cpu().numpy().astype("int32"), found.values.cpu().numpy())

    def _save(self) -> None:
        """Keep the base's answers for later attempts; on a full disk they are computed again, where they can be."""
        import numpy

        if not self._job.ranks.first:
            return
        about = json.dumps([item._asdict() for item in self._items])
        arrays = {
            f"{name}{number}": getattr(kept, name) for number, kept in enumerate(self._kept) for name in Kept._fields
        }
        draft = self._path.with_name(f".{FILE}")
        try:
            with draft.open("wb") as file:
                numpy.savez(file, items=numpy.array(about), **arrays)
            attempt_fence.check(draft)
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)

    def _load(self) -> tuple[list[Item], list[Kept]] | None:
        """What has been kept; None if there is nothing, or it is damaged."""
        import numpy

        try:
            with numpy.load(self._path) as stored:
                items = [Item(**item) for item in json.loads(str(stored["items"]))]
                return items, [
                    Kept(*(stored[f"{name}{number}"] for name in Kept._fields)) for number in range(len(items))
                ]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    # ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _share(self, compute: Callable[[int], T]) -> list[T]:
        """The result of `compute` for the number of each item, on every rank."""
        ranks = self._job.ranks
        mine = range(len(self._items))[ranks.rank :: ranks.world]

        def compute_mine() -> list[T]:
            with self._loop.strategy.in_step():
                return [compute(number) for number in mine]

        shares = memory.compute_on_all(ranks, compute_mine, recovers=not self._loop.strategy.sharded)
        return [shares[at % ranks.world][at // ranks.world] for at in range(len(self._items))]

    def _log_probs(self, item: Item) -> Any:
        """[counted tokens, vocabulary], float32."""
        import torch

        ids = torch.tensor([item.ids], device=self._job.device.name)
        logits = self._loop.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        picked = logits[0, -len(item.ids) :][item.start - 1 : -1]  # virtual tokens of an adapter come first
        return picked.float().log_softmax(-1)

    def _compare(self, number: int) -> tuple[float, int, float, bool]:
        """Of an item's counted tokens: the sum of divergences, their number, their loss, and whether the model would
        choose another token at one of them."""
        import torch

        item, kept = self._items[number], self._kept[number]
        log_probs = self._log_probs(item)
        targets = torch.tensor(item.ids[item.start :], device=log_probs.device)
        tokens = torch.from_numpy(kept.tokens).long().to(log_probs.device)
        base = torch.from_numpy(kept.values).to(log_probs.device)
        model = log_probs.gather(-1, tokens)
        rest_base, rest_model = ((1 - each.double().exp().sum(-1)).clamp_min(1e-12) for each in (base, model))
        divergence = (base.exp() * (base - model)).sum() + (rest_base * (rest_base / rest_model).log()).sum()
        changed = (log_probs.argmax(-1) != targets).any()
        loss = -log_probs.gather(-1, targets[:, None]).sum()
        # Rounding can make it negative. It stays NaN where the model's numbers are: `max` would call that no drift.
        return float(divergence.clamp_min(0)), len(targets), float(loss), bool(changed)

    def _judge_manners(self) -> dict[str, float]:
        """Stops, format and language of the replies to some of the prompts, of each language equally many."""
        rows = list(read_rows("prompt"))
        half = SPOKEN // 2
        rows = [*rows[:half], *rows[-half:]]
        replies = self._speak([self._prompt_ids(row["text"]) for row in rows], SPOKEN_TOKENS)
        stops = set(self._job.prepared["lock"]["eos_token_ids"])
        ended = [bool(reply) and reply[-1] in stops for reply in replies]
        bare = [reply[:-1] if end else reply for reply, end in zip(replies, ended, strict=True)]
        texts = [self._job.tokenizer.decode(reply) for reply in bare]
        return {
            names.STOPS: sum(ended) / len(rows),
            names.FORMAT: sum(map(is_well_formed, texts)) / len(rows),
            names.LANGUAGE: sum(speaks(text, row["language"]) for text, row in zip(texts, rows, strict=True))
            / len(rows),
        }

    def _speak(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        """Greedy replies, with their stop tokens, on every rank."""
        ranks, job = self._job.ranks, self._job
        mine = prompts[ranks.rank :: ranks.world]
        stops = job.prepared["lock"]["eos_token_ids"]

        def speak_mine() -> list[list[int]]:
            with self._loop.strategy.in_step():
                return sample_batch(self._loop.model, job.tokenizer, mine, Sampling(length), stops) if mine else []

        shares = memory.compute_on_all(ranks, speak_mine, recovers=not self._loop.strategy.sharded)
        return [shares[at % ranks.world][at // ranks.world] for at in range(len(prompts))]

    def _prompt_ids(self, text: str) -> list[int]:
        tokenizer = self._job.tokenizer
        if choose_template(tokenizer.chat_template):
            return render(tokenizer, [{"role": "user", "content": text}], reply_follows=True)
        ids: list[int] = tokenizer(text).input_ids
        return ids


def read_rows(kind: str) -> Iterator[dict[str, str]]:
    """The bundled rows of a kind: `prompt` or `text`."""
    path = find_bundled("data") / "drift" / "neutral.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == kind:
            yield row


def is_well_formed(text: str) -> bool:
    """Whether a reply has something to say, no mark of a chat template, and does not end in a loop."""
    text = text.strip()
    if not text or _MARKS.search(text):
        return False
    return not any(text.endswith(text[-width:] * 4) for width in range(1, len(text) // 4 + 1))


def speaks(text: str, language: str) -> bool:
    """Whether a reply is in Chinese (`zh`), or in a language with letters (`en`)."""
    letters = [character for character in text if character.isalpha()]
    han = len(_HAN.findall(text))
    return bool(letters) and (han >= len(letters) / 2) == (language == "zh")
