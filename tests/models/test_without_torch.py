"""Tokenizers in a process without torch: they are the same, and the processes that need no more never load it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.models import tokenizers
from engine.protocol.home import Home
from tests.cli.conftest import command
from tests.models.glm.folders import original
from tests.training import warm

TEXTS = [
    "",
    "The quick brown fox.",
    "  two  blanks\n\n\ttab",
    "naïve café 你好，世界 🙂",
    "<|im_start|>user\nx<|im_end|>",
]
CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
NOT_TO_PREPARE = {"torch", "sympy", "datasets", "pandas", "peft", "accelerate", "bitsandbytes", "trl", "matplotlib"}


def describe(tokenizer: Any) -> dict[str, Any]:
    """What a run depends on."""
    return {
        "class": type(tokenizer).__name__,
        "ids": [tokenizer(text).input_ids for text in TEXTS],
        "plain": [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS],
        "decoded": [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS],
        "chat": tokenizer.apply_chat_template(CHAT, return_dict=False),
        "prompt": tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False),
        "special": tokenizer.special_tokens_map,
        "added": {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "size": len(tokenizer),
        "longest": tokenizer.model_max_length,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
    }


def load_apart(folders: list[Path]) -> list[dict[str, Any]]:
    program = (
        "import json, sys; from pathlib import Path; from engine.models import tokenizers; "
        "tokenizers.leave_out_torch(); from tests.models.test_without_torch import describe; "
        "found = [describe(tokenizers.load(Path(each))) for each in sys.argv[1:]]; "
        "assert 'torch' not in sys.modules; import torch; assert torch.ones(1).item() == 1; "
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_tokenizers_are_those_that_a_process_with_torch_has(light: Path, tmp_path: Path) -> None:
    folders = [light, *(original(tmp_path / str(number), number) for number in (1, 2, 3))]
    saved = tmp_path / "saved"
    tokenizers.load(folders[1]).save_pretrained(saved)
    folders.append(saved)
    expected = json.loads(json.dumps([describe(tokenizers.load(each)) for each in folders]))
    assert load_apart(folders) == expected


def packages_of(log: str) -> set[str]:
    """The top-level packages in the output of `python -X importtime`."""
    return {name.partition(".")[0] for name in re.findall(r"^import time:.*\|\s*([\w.]+)$", log, re.M)}


def test_a_prepare_worker_loads_only_what_tokenising_needs(bare_home: Home, light: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    run = bare_home.run("run-1")
    run.path.mkdir(parents=True)
    run.profile.write_text(
        f"model: {{base: {light}}}\nmethod: {{kind: sft}}\ndata: {{train: [{{source: rows.jsonl}}]}}\n"
    )
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(tmp_path)}))
    arguments = ["--home", bare_home.root, "--job", run.id, "--attempt", "1", "--address", f"ipc://{tmp_path}/line"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "engine.workers.prepare", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(warm.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and json.loads(run.prepared.read_bytes())["rows"] == 1, run.events.read_text()
    loaded = packages_of(done.stderr)
    assert {"transformers", "tokenizers", "pyarrow"} <= loaded
    assert not loaded & NOT_TO_PREPARE


def test_a_verb_on_data_loads_only_what_tokenising_needs(bare_home: Home, light: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    done = subprocess.run(
        command("data", "tokenize", "rows.jsonl", "--model", str(light), "--out", "out", "--home", str(bare_home.root)),
        env=os.environ | {"PYTHONPATH": str(warm.ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = packages_of(done.stderr)
    assert {"transformers", "tokenizers", "pyarrow"} <= loaded
    assert not loaded & NOT_TO_PREPARE
