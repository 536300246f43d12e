"""Prepared preference rows for the tiny model, and trl's own trainers on the same batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.training.harness import WORDS

Rows = list[dict[str, list[int]]]
KINDS = {"reward": "pairs", "dpo": "pairs", "orpo": "pairs", "kto": "judged"}
STEPS = 8
BRIEF = ("training.max_steps=8", "evaluation.every_steps=4", "training.rehearsal=false")
FULL = ("adapter={kind: none}", "training.learning_rate=1.0e-3")


def make_pairs(count: int, seed: int) -> Rows:
    """Prompts of 4 to 12 of the first forty words; the chosen reply repeats them, the rejected one says some of the
    others."""
    generator = random.Random(seed)

    def words(first: int, behind: int, low: int, high: int) -> list[int]:
        return [generator.randrange(4 + first, 4 + behind) for _ in range(generator.randrange(low, high))]

    rows = []
    for _ in range(count):
        asked, wrong = words(0, WORDS - 20, 4, 13), words(WORDS - 20, WORDS, 2, 9)
        rows.append({"prompt_ids": [2, *asked, 1, 3], "chosen_ids": [*asked, 1], "rejected_ids": [*wrong, 1]})
    return rows


def judged(pairs: Rows) -> Rows:
    """Each pair as two judgements, three out of four of them kept: more good ones than bad."""
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[name], "label": [int(name == "chosen_ids")]}
        for pair in pairs
        for name in ("chosen_ids", "rejected_ids")
    ]
    return [row for number, row in enumerate(rows) if number % 4 != 3]


def prepare(folder: Path, base: Path, kind: str, rows: int = 22, held_out: int = 6) -> dict[str, Any]:
    """What the prepare stage would have left for a method whose rows are of this kind."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from engine.models.template_lock import hash_template

    sets = {"train": make_pairs(rows, 1), "validation": make_pairs(held_out, 2)}
    for name, pairs in sets.items():
        Dataset.from_list(judged(pairs) if kind == "judged" else pairs).save_to_disk(str(folder / name))
    return {
        **{name: str(folder / name) for name in sets},
        "validation_rows": None,
        "rows": rows,
        "tokens": 1,
        "trained_tokens": 1,
        "rejected": 0,
        "hash": "0",
        "base": str(base),
        "lock": {
            "template_sha256": hash_template(AutoTokenizer.from_pretrained(base)),
            "eos_token_ids": [1],
            "golden": [],
        },
        "stats": {},
    }


def make_scorer(base: Path, folder: Path) -> Path:
    """The tiny model with a head that scores, drawn at random."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def global_batches(prepared: dict[str, Any], micro_batch: int, steps: int) -> Iterator[list[dict[str, list[int]]]]:
    """The rows of the first steps, as a run of one process without accumulation sees them."""
    from datasets import load_from_disk

    from engine.prep.batching import GlobalBatches, token_counts

    rows = load_from_disk(prepared["train"])
    batches = GlobalBatches(token_counts(rows), micro_batch, 1, 0, 1, 42)
    while True:
        for batch in batches:
            yield [rows[index] for index in batch]
            batches.step += 1
            if batches.step == steps:
                return


def losses_of(trainer: type, model: Any, config: Any, batches: list[Any], tokenizer: Any, **more: Any) -> list[float]:
    """What a trl trainer loses at each step over these batches, prepared already."""
    from datasets import Dataset

    lost: list[float] = []

    class Theirs(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            return [self.data_collator(batch) for batch in batches]

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            lost.append(float(loss))
            return loss

    theirs = Theirs(
        model=model, args=config, train_dataset=Dataset.from_list(batches[0]), processing_class=tokenizer, **more
    )
    theirs.train()
    return lost
