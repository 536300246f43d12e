"""Prepared prompts for the tiny model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.training.harness import WORDS


def make_prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of 4 to 12 words, as the tiny model's template writes them, with a reference."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        asked = [generator.randrange(WORDS) for _ in range(generator.randrange(4, 13))]
        content = " ".join(f"w{word}" for word in asked)
        rows.append(
            {
                "prompt_ids": [2, *(4 + word for word in asked), 1, 3],
                "prompt": json.dumps({"messages": [{"role": "user", "content": content}]}),
                "reference": "w1 w2",
            }
        )
    return rows


def prepare(folder: Path, base: Path, rows: int = 22, held_out: int = 6, **more: Any) -> dict[str, Any]:
    """What the prepare stage would have left."""
    from datasets import Dataset

    sets = {"train": make_prompts(rows, 1), "validation": make_prompts(held_out, 2)}
    for name, prompts in sets.items():
        Dataset.from_list(prompts).save_to_disk(str(folder / name))
    return {
        **{name: str(folder / name) for name in sets},
        "validation_rows": None,
        "rows": rows,
        "tokens": 1,
        "trained_tokens": 0,
        "rejected": 0,
        "hash": "0",
        "base": str(base),
        "lock": {"template_sha256": "", "eos_token_ids": [1], "golden": []},
        "stats": {},
        **more,
    }
