"""Pretrain, then fine-tune, then fine-tune again: three profiles in a row, each naming the run before as its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.protocol.home import Home
from tests.cli.conftest import Cockpit
from tests.training.harness import make_model

COMMON = """
training: {{max_steps: {steps}, micro_batch: 4, learning_rate: 5.0e-3, threads: 1, rehearsal: false}}
logging: {{tensorboard: false, plots: false}}
limits: {{disk_free_gb: 0}}
"""
PRETRAIN = """
name: pretrain
model:
  init: config
  dtype: float32
  tokenizer: {tokenizer}
  config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, \
num_attention_heads: 4, num_key_value_heads: 2}}
adapter: {{kind: none}}
method: {{kind: pretrain}}
data: {{train: [{{source: texts.jsonl}}], max_length: 32}}
"""
TUNE = """
name: {name}
model: {{base: {base}, dtype: float32}}
adapter: {{kind: lora, rank: 4}}
data: {{train: [{{source: chats.jsonl}}], max_length: 32}}
"""


@pytest.mark.slow
def test_three_profiles_in_a_row_each_on_the_run_before(cockpit: Cockpit, bare_home: Home, tmp_path: Path) -> None:
    tokenizer = make_model(tmp_path / "tokenizer")
    for weights in tokenizer.glob("*.safetensors"):
        weights.unlink()
    texts = [{"text": " ".join(f"w{(row + at) % 60}" for at in range(20))} for row in range(20)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"w{row}"},
                {"role": "assistant", "content": f"w{row + 1} w{row + 2}"},
            ]
        }
        for row in range(20)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    profiles = {
        "pretrain": PRETRAIN.format(tokenizer=tokenizer),
        "tune": TUNE.format(name="tune", base="last"),
        "again": TUNE.format(name="again", base="last"),
    }
    runs = {}
    for name, text in profiles.items():
        (tmp_path / f"{name}.yaml").write_text(text + COMMON.format(steps=3))
        done = cockpit("train", f"{name}.yaml", "--json", seconds=240)
        assert done.returncode == 0, done.stdout + done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["state"] == "completed"
        runs[name] = bare_home.run(said["run"])

    bases = {name: json.loads(run.prepared.read_text())["base"] for name, run in runs.items()}
    assert bases["pretrain"] is None
    for name, before in (("tune", "pretrain"), ("again", "tune")):
        kept = Path(bases[name])
        assert kept.parent == bare_home.cache and kept.name.startswith(f"{runs[before].id}@3-")
        assert str(kept) in runs[name].profile.read_text()
        assert json.loads((runs[name].checkpoint(3) / "lock.json").read_text())["base"] == str(kept)

    # The base that a run began from is its own: what becomes of the run before does not matter.
    for name in ("pretrain", "tune"):
        assert cockpit("delete", runs[name].id).returncode == 0
    again = runs["again"].id
    asked = ("chat", again, "--prompt", "w5", "--max-new-tokens", "4", "--json")
    before = cockpit(*asked, seconds=120)
    assert before.returncode == 0, before.stderr
    assert json.loads(before.stdout)["tokens"] > 0
    done = cockpit("resume", again, "--set", "training.max_steps=5", "--json", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 5
    assert json.loads(runs["again"].prepared.read_text())["base"] == bases["again"]
