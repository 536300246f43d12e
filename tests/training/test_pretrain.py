"""Pretraining: what is prepared for it, what its loss equals, and models that begin with random weights."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start
from tests.training import in_process
from tests.training.harness import WORDS

END = 1
SHAPE = (
    "model.init=config",
    (
        "model.config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
        "num_key_value_heads: 2}"
    ),
)


def _quiet(*_: Any) -> None:
    pass


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _texts(count: int, seed: int) -> list[dict[str, str]]:
    """Documents of 3 to 40 words that count upwards from some word on."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        start, length = generator.randrange(WORDS), generator.randrange(3, 41)
        rows.append({"text": " ".join(f"w{(start + index) % WORDS}" for index in range(length))})
    return rows


def _prepared(home: Home, folder: Path, tiny: Path, *changes: str, method: str = "pretrain", **files: list[Any]) -> Any:
    """prepared.json of a profile over these rows."""
    sources = {
        part: [
            {"source": str(_write(folder / f"{part}-{shape}.jsonl", some))}
            for shape in ("text", "messages")
            if (some := [row for row in rows if shape in row])
        ]
        for part, rows in files.items()
    }
    document = {
        "model": {"base": str(tiny), "dtype": "float32"},
        "adapter": {"kind": "none"},
        "method": {"kind": method},
        "data": {**sources, "max_length": 32},
    }
    return prepare(parse(json.dumps(document), "test", folder, changes, home), home, _quiet)


def _rows(folder: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(folder)


def test_documents_fill_blocks_and_end_with_their_token(bare_home: Home, tiny: Path, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]}
    files = {"train": [*_texts(9, 1), chat], "validation": _texts(3, 2)}
    made = {
        sequences: _prepared(bare_home, tmp_path, tiny, f"method.sequences={sequences}", **files)
        for sequences in ("blocks", "packed", "rows")
    }
    blocks, packed, rows = (_rows(made[sequences]["train"]) for sequences in ("blocks", "packed", "rows"))
    whole = [token for block in blocks for token in block["input_ids"]]
    documents = [[4 + int(word[1:]) for word in row["text"].split()] + [END] for row in files["train"][:-1]]
    documents.append([2, 5, 6, END, 3, 7, END])
    assert whole == [token for document in documents for token in document]
    assert {len(block["input_ids"]) for block in list(blocks)[:-1]} == {32}
    for block in blocks:
        at = 0
        for length in block["seq_lengths"]:
            labels = block["labels"][at : at + length]
            assert labels == [-100, *block["input_ids"][at + 1 : at + length]]  # everything that something predicts
            assert block["position_ids"][at : at + length] == list(range(length))
            at += length
    trained = sum(label != -100 for block in blocks for label in block["labels"])
    assert made["blocks"]["trained_tokens"] == trained == len(whole) - sum(len(b["seq_lengths"]) for b in blocks)
    assert [row["input_ids"] for row in rows] == [document[:32] for document in documents]
    inside = sorted(token for row in rows for token in row["input_ids"])
    assert sorted(token for sequence in packed for token in sequence["input_ids"]) == inside
    assert max(len(block["seq_lengths"]) for block in packed) > 1
    held_out = _rows(made["blocks"]["validation"])
    assert sum(len(block["input_ids"]) for block in held_out) == sum(
        len(row["text"].split()) + 1 for row in files["validation"]
    )
    assert len({each["hash"] for each in made.values()}) == 3


# ── equal to the libraries' own trainers ───────────────────────────────────────────────────────────────────────────

STEPS = 12
SAME = (
    "adapter={kind: none}",
    f"training.max_steps={STEPS}",
    "training.micro_batch=3",
    "training.accumulation=2",
    "training.learning_rate=3e-3",
    "training.weight_decay=0.1",
)


def _arguments(config: type, folder: Path, **more: Any) -> Any:
    """The same run for a library's trainer: 3 × 2 rows a step, cosine with 2 steps of warm-up, AdamW, clipped at 1."""
    return config(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        weight_decay=0.1,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        seed=42,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **more,
    )


def _losses(trainer: Any, rows: Any, collate: Any) -> dict[int, float]:
    """Train on our batches in our order, all else as the library does it; the loss of each step, not rounded."""
    from torch.utils.data import DataLoader

    from engine.prep.batching import GlobalBatches, token_counts

    batches = GlobalBatches(token_counts(_plain(rows)), 3, 2, 0, 1, 42)
    order = []
    while len(order) < STEPS * 2:
        order += list(batches)
        batches.step += batches.per_epoch
    trainer.get_train_dataloader = lambda: DataLoader(rows, batch_sampler=order[: STEPS * 2], collate_fn=collate)
    step, losses = trainer.training_step, []

    def noted(*arguments: Any, **named: Any) -> Any:
        losses.append(step(*arguments, **named))
        return losses[-1]

    trainer.training_step = noted
    trainer.train()
    return {at + 1: (losses[2 * at] + losses[2 * at + 1]).item() for at in range(STEPS)}


def _plain(rows: Any) -> Any:
    return rows if hasattr(rows, "data") and rows._indices is None else rows.flatten_indices()


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, fill: int) -> Any:
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", -100), "attention_mask": mask}


def _flattened(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """As transformers' own `DataCollatorWithFlattening` lays sequences end to end: positions say where each begins."""
    import torch

    return {
        name: torch.tensor([[value for row in rows for value in row[name]]])
        for name in ("input_ids", "labels", "position_ids")
    }


@pytest.mark.parametrize(("sequences", "collate"), [("rows", _padded), ("blocks", _flattened)])
def test_pretraining_loses_what_transformers_loses(
    bare_home: Home, tiny: Path, tmp_path: Path, sequences: str, collate: Any
) -> None:
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    files = {"train": _texts(40, 1), "validation": _texts(3, 2)}
    prepared = _prepared(bare_home, tmp_path, tiny, f"method.sequences={sequences}", **files)
    run = in_process.train(bare_home, "ours", prepared, *SAME, "method={kind: pretrain}")
    ours = in_process.series(run, "train/loss")
    theirs = _losses(
        Trainer(
            model=AutoModelForCausalLM.from_pretrained(tiny), args=_arguments(TrainingArguments, tmp_path / "theirs")
        ),
        _rows(prepared["train"]),
        collate,
    )
    assert ours == pytest.approx(theirs, rel=1e-4) and len(ours) == STEPS
    assert ours[STEPS] < 0.95 * ours[1]
    last = in_process.entries(run, Evaluation)[-1].values
    assert last["eval/perplexity"] == pytest.approx(math.exp(last["eval/loss"]))


def test_supervised_training_loses_what_trl_loses(bare_home: Home, tiny: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    generator = random.Random(5)

    def said() -> str:
        return " ".join(f"w{generator.randrange(WORDS)}" for _ in range(generator.randrange(2, 6)))

    chats = [
        {"messages": [{"role": role, "content": said()} for role in ("user", "assistant") * (1 + number % 2)]}
        for number in range(30)
    ]
    prepared = _prepared(bare_home, tmp_path, tiny, method="sft", train=chats)
    run = in_process.train(bare_home, "ours", prepared, *SAME)
    ours = in_process.series(run, "train/loss")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (  # the same text; trl wants to be told what the assistant says
        "{% for m in messages %}{% if m.role == 'assistant' %}assistant {% generation %}{{ m.content }} <end>"
        "{% endgeneration %} {% else %}{{ m.role }} {{ m.content }} <end> {% endif %}{% endfor %}"
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=_arguments(
            SFTConfig, tmp_path / "theirs", assistant_only_loss=True, max_length=32, gradient_checkpointing=False
        ),
        train_dataset=Dataset.from_list(chats),
        processing_class=tokenizer,
    )
    rows = trainer.train_dataset
    mine = _rows(prepared["train"])
    for name in ("input_ids", "labels"):
        assert [row[name] for row in rows] == [row[name] for row in mine]
    theirs = _losses(trainer, rows, trainer.data_collator)
    assert ours == pytest.approx(theirs, rel=1e-4) and len(ours) == STEPS
    assert ours[STEPS] < 0.97 * ours[1]


# ── random weights ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scratch(bare_home: Home, tiny: Path, tmp_path: Path) -> Any:
    """Prepared rows of a run that has no base, and a tokenizer of its own."""
    own = (*SHAPE, f"model.tokenizer={tiny}", "model.base=there-is-no-such-model")
    prepared = _prepared(bare_home, tmp_path, tiny, *own, train=_texts(24, 1), validation=_texts(4, 2))
    assert prepared["base"] is None and prepared["tokenizer"] == str(tiny)
    return prepared, (*own, "adapter={kind: none}", "method={kind: pretrain}", "training.learning_rate=3e-3")


def test_a_model_without_a_base_trains_resumes_exactly_and_loads_plainly(
    bare_home: Home, tiny: Path, scratch: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepared, own = scratch
    own = (*own, "model.dtype=bfloat16", "training.max_steps=4")
    whole = in_process.train(bare_home, "whole", prepared, *own)
    halved = in_process.train(bare_home, "halved", prepared, *own, "checkpoint.every_steps=2")
    in_process.train(bare_home, "halved", prepared, *own, "checkpoint.every_steps=2", from_step=2)
    assert in_process.entries(halved, Start)[-1].step == 2
    assert in_process.series(halved, "train/loss") == in_process.series(whole, "train/loss")
    assert in_process.series(whole, "train/loss")[1] == pytest.approx(
        math.log(WORDS + 4), rel=0.02
    )  # it knows nothing yet
    other = in_process.train(bare_home, "other", prepared, *own, "training.seed=7")
    assert in_process.series(other, "train/loss")[1] != in_process.series(whole, "train/loss")[1]
    folder = whole.checkpoint(4)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.dtype, model.config.hidden_size, model.config.vocab_size) == (torch.bfloat16, 32, len(tokenizer))
    assert model.generation_config.eos_token_id == [END] and (folder / "trainer" / "masters.pt").is_file()
    assert json.loads((folder / "lock.json").read_text())["base"] is None
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny).get_vocab()


@pytest.mark.slow
def test_ranks_begin_with_the_same_random_weights(start_run: Any, scratch: Any) -> None:
    prepared, own = scratch
    own = (*own, "training.max_steps=3")
    losses = {}
    for processes in (1, 2):
        run = start_run(
            f"of-{processes}",
            *own,
            f"training.micro_batch={4 // processes}",
            f"launch.processes={processes}",
            prepared=prepared,
        )
        run.train(processes=processes)
        losses[processes] = run.series("train/loss")
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
