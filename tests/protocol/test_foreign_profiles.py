"""Profiles from other programs' configurations: keys are mapped, and whatever is not is listed."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cockpit.cli import main
from cockpit.verbs.profile_import import _write_yaml
from engine.config import foreign_profiles
from engine.config.foreign_profiles import read_foreign
from engine.config.form import list_fields
from engine.config.profile import SECTIONS, parse

LLAMA_FACTORY = """
### model
model_name_or_path: Qwen/Qwen2.5-0.5B
trust_remote_code: true
quantization_bit: 4
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
deepspeed: ds_z3_config.json
### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
### output
output_dir: saves/x
logging_steps: 10
save_steps: 500
plot_loss: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
strict: false
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
  - {path: json, data_files: [a.jsonl, b.jsonl], type: chat_template, field_messages: talk}
val_set_size: 0.1
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
wandb_project: mine
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
warmup_steps: 10
flash_attention: true
special_tokens: {pad_token: "<|end_of_text|>"}
weight_decay: 0.0
"""
ARGUMENTS = {
    "output_dir": "out", "per_device_train_batch_size": 4, "learning_rate": "5e-05", "num_train_epochs": 2,
    "max_steps": -1, "optim": "adamw_torch_fused", "lr_scheduler_type": "SchedulerType.LINEAR", "warmup_steps": 0.05,
    "bf16": True, "fp16": False, "eval_strategy": "steps", "eval_steps": 50, "save_strategy": "no", "use_peft": True,
    "report_to": ["tensorboard"], "fsdp": "full_shard", "lora_target_modules": ["q_proj"], "push_to_hub": False,
    "model_name_or_path": "org/base", "adam_beta2": 0.95,
}  # fmt: skip


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


def test_a_file_of_llama_factory() -> None:
    found = read_foreign(load(LLAMA_FACTORY), "x.yaml")
    assert found.program == "llamafactory" and found.left_out == {
        "deepspeed": "ds_z3_config.json",
        "template": "llama3",
    }
    assert found.settings["model"] == {"base": "Qwen/Qwen2.5-0.5B", "trust_remote_code": True, "quantization": "nf4",
                                       "dtype": "bfloat16"}  # fmt: skip
    assert found.settings["adapter"] == {"kind": "lora", "rank": 8, "targets": "all-linear"}
    assert found.settings["data"] == {
        "train": [{"source": "identity"}, {"source": "alpaca_en_demo"}], "catalog": "data/dataset_info.json",
        "max_length": 2048, "max_rows": 1000, "processes": 16,
    }  # fmt: skip
    assert found.settings["training"] == {"micro_batch": 1, "accumulation": 8, "learning_rate": 1e-4, "epochs": 3.0,
                                          "scheduler": "cosine", "warmup": 0.1}  # fmt: skip


def test_a_file_of_axolotl() -> None:
    found = read_foreign(load(AXOLOTL), "x.yaml")
    assert found.program == "axolotl"
    assert found.left_out == {
        "datasets.1.field_messages": "talk",
        "special_tokens": {"pad_token": "<|end_of_text|>"},
    }
    assert found.settings["data"]["train"] == [
        {"source": "teknium/GPT4-LLM-Cleaned", "format": "alpaca"},
        {"source": "a.jsonl", "format": "messages"},
        {"source": "b.jsonl", "format": "messages"},
    ]
    assert found.settings["model"]["quantization"] == "nf4" and found.settings["adapter"]["targets"] == "all-linear"
    assert found.settings["training"]["warmup"] == 10 and found.settings["training"]["optimizer"] == "adamw_8bit"
    assert found.settings["logging"]["wandb"] == {"project": "mine"}


def test_a_dump_of_arguments() -> None:
    found = read_foreign(ARGUMENTS, "training_args.json")
    assert found.program == "transformers"
    assert found.left_out == {"fsdp": "full_shard", "adam_beta2": 0.95, "save_strategy": "no"}
    assert found.settings["training"] == {"micro_batch": 4, "learning_rate": 5e-5, "epochs": 2.0, "optimizer": "adamw",
                                          "scheduler": "linear", "warmup": 0.05}  # fmt: skip
    assert found.settings["adapter"] == {"kind": "lora", "targets": ["q_proj"]}


@pytest.mark.parametrize("document", [LLAMA_FACTORY, AXOLOTL, ARGUMENTS])
def test_what_comes_of_it_is_a_profile(document: Any, tmp_path: Path) -> None:
    """Every setting is one that exists, with a value that it can take; sources of the hub are not looked for here."""
    settings = read_foreign(load(document) if isinstance(document, str) else document, "x").settings
    text = io.StringIO()
    YAML().dump(
        settings | {"data": settings.get("data", {}) | {"train": [{"source": str(tmp_path)}], "catalog": None}}, text
    )
    try:
        parse(text.getvalue(), "x", tmp_path, (), None)
    except Exception as error:  # noqa: BLE001 - a base and rows that are not here may be missed, nothing else
        codes = {issue.code for issue in getattr(error, "issues", [])}
        assert codes and codes <= {"profile.conflict"}, error


def test_every_key_is_mapped_to_a_setting_that_exists() -> None:
    known = {"name"} | {f"{section}.kind" for section in ("method", "adapter")}
    for section, argument in (("method", "method"), ("adapter", "adapter")):
        for kind in SECTIONS[section]:
            known |= {field.key for field in list_fields(**{argument: kind})}
    values = [True, False, 1, 4, 8, 0.5, "1e-4", "steps", "none", "lora", "sft", "adamw", "cosine", "auto", "dpo", "x"]
    values += [["tensorboard", "wandb"], "all", "qlora", "ipo", "orpo", "bnb", "adamw_torch", "sdpa", "hinge"]
    reached = set()
    for _, table, _ in foreign_profiles._PROGRAMS:
        for key, reading in table.items():
            for value in values:
                with contextlib.suppress(TypeError, ValueError):
                    for setting, _ in reading.read(value) or []:
                        assert not setting or setting in known, (key, setting)
                        reached.add(setting)
    assert len(reached) > 40


def test_what_is_none_of_them_is_refused_and_nothing_is_lost() -> None:
    for document in ([1], None, "text", {"learning_rate": 1}, {"some": 1, "other": 2}):
        with pytest.raises(ValueError):
            read_foreign(document, "x")
    strange = {**ARGUMENTS, "learning_rate": "fast", "optim": "lion_32bit", "zzz": [1]}
    assert {"learning_rate": "fast", "optim": "lion_32bit", "zzz": [1]}.items() <= read_foreign(
        strange, "x"
    ).left_out.items()


def test_what_a_file_leaves_to_its_program_is_what_that_program_does() -> None:
    axolotl = {"base_model": "x", "sequence_len": 9, "adapter": None, "lora_r": 16, "datasets": "a.jsonl"}
    found = read_foreign(axolotl, "x")
    assert found.settings["adapter"] == {"kind": "none"} and found.left_out["datasets.0"] == "a.jsonl"
    assert read_foreign({"cutoff_len": 9, "lora_target": "all"}, "x").settings["adapter"]["kind"] == "lora"
    assert read_foreign({**ARGUMENTS, "stage": "sft", "cutoff_len": 9}, "x").program == "llamafactory"
    found = read_foreign({**ARGUMENTS, "save_strategy": "epoch", "save_steps": 500, "logging_steps": math.inf}, "x")
    assert "checkpoint" not in found.settings and found.left_out["logging_steps"] == math.inf


def test_a_foreign_key_cannot_leave_its_comment() -> None:
    found = read_foreign({**ARGUMENTS, "a\nmodel: {trust_remote_code: true}\x85b": "c\nd: e"}, "x")
    assert load(_write_yaml(found, "x\ny: z")) == found.settings


def test_the_verb_prints_writes_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "lf.yaml", tmp_path / "profile.yaml"
    source.write_text(LLAMA_FACTORY)
    assert main(["profile", "import", str(source), "--home", str(tmp_path)]) == 1  # neither base nor rows are here
    said = capsys.readouterr()
    assert load(said.out)["training"]["learning_rate"] == 1e-4 and "#   deepspeed: ds_z3_config.json" in said.out
    assert "no counterpart: template: llama3" in said.err
    main(["profile", "import", str(source), "--out", str(out), "--json", "--home", str(tmp_path)])
    assert json.loads(capsys.readouterr().out)["path"] == str(out) and load(out.read_text())["method"]["kind"] == "sft"
    assert main(["profile", "import", str(source), "--out", str(out), "--home", str(tmp_path)]) == 2
    assert main(["profile", "import", str(tmp_path / "absent"), "--home", str(tmp_path)]) == 2
