"""Whole sessions in the real worker, on original folders: they learn, resume exactly, and leave what loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.glm.folders import original
from tests.models.glm.layouts import fill
from tests.training.harness import prepare


def prepared(place: Path, generation: int) -> dict[str, Any]:
    """Rows that a causal and a prefix model can both read; ids as in the folder's config."""
    from datasets import Dataset, load_from_disk

    folder = fill(original(place / "base", generation), shards=2, binary=True, dtype="float16")
    found = prepare(place, folder, rows=16)
    config = json.loads((folder / "config.json").read_text())
    marks = {1: config.get("eos_token_id", 2), 3: config.get("bos_token_id", 7), 2: config.get("gmask_token_id", 6)}

    def told(row: dict[str, list[int]]) -> dict[str, list[int]]:
        return {
            "input_ids": [marks.get(token, token + 10) for token in row["input_ids"]],
            "labels": [label if label < 0 else marks.get(label, label + 10) for label in row["labels"]],
        }

    for name in ("train", "validation"):
        rows = [told(row) for row in load_from_disk(found[name])]
        found[name] = str(place / f"{name}-{generation}")
        Dataset.from_list(rows).save_to_disk(found[name])
    return found | {"lock": {"template_sha256": "", "eos_token_ids": [marks[1]], "golden": []}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "changes"),
    [
        (1, ("model.quantization=nf4", "model.dtype=float16", "training.gradient_checkpointing=true")),
        (3, ("adapter={kind: none}", "training.learning_rate=0.001")),
        (2, ("launch.processes=2", "training.micro_batch=2", "training.accumulation=1")),
    ],
)
def test_a_session_learns_resumes_exactly_and_leaves_what_loads(start_run, tmp_path: Path, generation, changes):
    from safetensors.torch import load_file

    run = start_run(
        "glm",
        prepared(tmp_path, generation),
        *changes,
        "training.epochs=2",
        "checkpoint.every_steps=4",
        "checkpoint.keep=9",
    )
    processes = 2 if generation == 2 else 1
    run.train(processes=processes)
    losses = run.series("train/loss")
    assert len(losses) == 8 and losses[8] < losses[1]

    def weights() -> dict[str, Any]:
        files = run.run.checkpoint(8).glob("*.safetensors")
        return {name: tensor for path in files for name, tensor in load_file(path).items()}

    before = weights()
    run.train("--from-step", "4", processes=processes)
    assert run.series("train/loss") == losses
    after = weights()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    if generation != 3:
        assert all(".lora_" in name for name in before)
    else:
        from transformers import AutoModelForCausalLM, GlmForCausalLM

        model, told = AutoModelForCausalLM.from_pretrained(run.run.checkpoint(8), output_loading_info=True)
        assert type(model) is GlmForCausalLM and not any(told.values())
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
