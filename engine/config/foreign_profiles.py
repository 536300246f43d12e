"""Profiles from the configurations of other programs: LLaMA-Factory, Axolotl, and dumps of trl's or transformers'
arguments. Keys are mapped, never text; what has no counterpart is listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Value = Any
Setting = tuple[str, Value]


class Imported(NamedTuple):
    """A profile as nested mappings, the program that the file was for, keys that have no counterpart with their values,
    and remarks about what was understood otherwise."""

    settings: dict[str, Any]
    program: str
    left_out: dict[str, Any]
    remarks: list[str]


class _Reading(NamedTuple):
    """What reads a key: the settings that its value becomes. None: there is no counterpart for this value."""

    read: Callable[[Value], list[Setting] | None]


def _to(*keys: str) -> _Reading:
    return _Reading(lambda value: [(key, value) for key in keys])


def _number(key: str, kind: Callable[[Any], float] = float) -> _Reading:
    """A number, also where the file has it as text, as YAML reads `1e-4`."""

    def read(value: Value) -> list[Setting] | None:
        try:
            return [(key, kind(float(value)) if kind is int else kind(value))]
        except (TypeError, ValueError, OverflowError):
            return None

    return _Reading(read)


def _positive(key: str) -> _Reading:
    """A number of steps; -1, 0 and nothing mean that the setting is not used."""
    inner = _number(key, int).read

    def read(value: Value) -> list[Setting] | None:
        return [] if value in (None, -1, 0, "-1", "0") else inner(value)

    return _Reading(read)


def _choice(key: str, choices: Mapping[Any, Any]) -> _Reading:
    """A value of a table, by its lower-case text; a value that maps to None has no counterpart."""

    def read(value: Value) -> list[Setting] | None:
        chosen = choices.get(str(value).lower().replace("schedulertype.", "").replace("optimizernames.", ""))
        return None if chosen is None else [(key, chosen)] if not isinstance(chosen, list) else chosen

    return _Reading(read)


def _flag(*settings: Setting, off: tuple[Setting, ...] = ()) -> _Reading:
    """Settings for a truthy value; none for another."""
    return _Reading(lambda value: list(settings) if value in (True, "true", "True", 1, "auto") else list(off))


_IGNORED = _Reading(lambda value: [])
"""Keys that say what cockpit does anyway, or what it decides itself."""
_OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw": "adamw", "sgd": "sgd",
    "adafactor": "adafactor", "muon": "muon", "adamw_bnb_8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw", "paged_adamw": "paged_adamw", "paged_adamw_8bit": "paged_adamw_8bit",
}  # fmt: skip
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "polynomial": "polynomial", "constant": "constant",
               "constant_with_warmup": "constant", "warmup_stable_decay": "wsd"}  # fmt: skip
_ATTENTION = {"auto": "auto", "sdpa": "sdpa", "eager": "eager", "fa2": "flash_attention_2", "disabled": "eager",
              "flash_attention_2": "flash_attention_2", "flash_attention_3": "flash_attention_3"}  # fmt: skip
_EVERY: dict[str, Any] = {"no": None, "steps": [], "epoch": []}


def _targets(value: Value) -> list[Setting] | None:
    if isinstance(value, str):
        names = [name.strip() for name in value.split(",") if name.strip()]
        value = "all-linear" if names in (["all"], ["all-linear"]) else names
    return [("adapter.targets", value)] if value else []


def _report_to(value: Value) -> list[Setting] | None:
    names = {str(each).lower() for each in (value if isinstance(value, list) else [value])}
    settings: list[Setting] = [("logging.wandb", {})] if "wandb" in names else []
    return settings if names <= {"none", "all", "tensorboard", "wandb"} else None


_ARGUMENTS: dict[str, _Reading] = {
    "learning_rate": _number("training.learning_rate"),
    "num_train_epochs": _number("training.epochs"),
    "max_steps": _positive("training.max_steps"),
    "per_device_train_batch_size": _number("training.micro_batch", int),
    "gradient_accumulation_steps": _number("training.accumulation", int),
    "weight_decay": _number("training.weight_decay"),
    "max_grad_norm": _number("training.max_grad_norm"),
    "label_smoothing_factor": _number("training.label_smoothing"),
    "neftune_noise_alpha": _Reading(lambda value: [("training.neftune", float(value))] if value else []),
    "lr_scheduler_type": _choice("training.scheduler", _SCHEDULERS),
    "optim": _choice("training.optimizer", _OPTIMIZERS),
    "seed": _number("training.seed", int),
    "gradient_checkpointing": _Reading(lambda value: [("training.gradient_checkpointing", bool(value))]),
    "bf16": _flag(("model.dtype", "bfloat16")),
    "fp16": _flag(("model.dtype", "float16")),
    "tf32": _flag(("training.tf32", True)),
    "dataloader_num_workers": _number("training.workers", int),
    "logging_steps": _Reading(lambda value: [("logging.every_steps", int(value))] if float(value) >= 1 else None),
    "save_steps": _Reading(lambda value: [("checkpoint.every_steps", int(value))] if float(value) >= 1 else None),
    "eval_steps": _Reading(
        lambda value: [] if value is None else [("evaluation.every_steps", int(value))] if float(value) >= 1 else None
    ),
    "save_total_limit": _Reading(lambda value: [("checkpoint.keep", int(value))] if value else []),
    "metric_for_best_model": _Reading(
        lambda value: [] if value in (None, "loss", "eval_loss") else None  # the default
    ),
    "report_to": _Reading(_report_to),
    "attn_implementation": _choice("model.attention", _ATTENTION),
    "model_name_or_path": _to("model.base"),
    "trust_remote_code": _flag(("model.trust_remote_code", True)),
    "use_liger_kernel": _flag(("training.liger", True)),
    "max_length": _number("data.max_length", int),
    "max_seq_length": _number("data.max_length", int),
    "packing": _flag(("data.packing", True)),
    "load_in_4bit": _flag(("model.quantization", "nf4")),
    "load_in_8bit": _flag(("model.quantization", "int8")),
    "use_dora": _flag(("adapter.kind", "dora")),
    "use_rslora": _flag(("adapter.kind", "rslora")),
    "lora_r": _number("adapter.rank", int),
    "lora_alpha": _number("adapter.alpha"),
    "lora_dropout": _number("adapter.dropout"),
    "lora_target_modules": _Reading(_targets),
    "use_peft": _flag(("adapter.kind", "lora"), off=(("adapter.kind", "none"),)),
    "dataset_name": _Reading(lambda value: [("data.train", [{"source": str(value)}])] if value else []),
    "resume_from_checkpoint": _IGNORED,
    "do_train": _IGNORED,
    "do_eval": _IGNORED,
    "output_dir": _IGNORED,
    "overwrite_output_dir": _IGNORED,
    "run_name": _to("name"),
    "save_strategy": _choice("", _EVERY),
    "eval_strategy": _choice("", _EVERY),
    "logging_strategy": _choice("", _EVERY),
    "ddp_timeout": _IGNORED,
    "group_by_length": _IGNORED,
    "remove_unused_columns": _IGNORED,
}
"""transformers' TrainingArguments and trl's ScriptArguments and ModelConfig."""

_LLAMA_FACTORY: dict[str, _Reading] = _ARGUMENTS | {
    "stage": _choice("method.kind", {"sft": "sft", "pt": "pretrain", "rm": "reward", "dpo": "dpo", "kto": "kto"}),
    "finetuning_type": _choice("adapter.kind", {"lora": "lora", "full": "none", "oft": "oft"}),
    "pref_beta": _number("method.beta"),
    "pref_loss": _choice("method.loss_type", {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo",
                                              "orpo": [("method.kind", "orpo")]}),
    "lora_rank": _number("adapter.rank", int),
    "lora_target": _Reading(_targets),
    "cutoff_len": _number("data.max_length", int),
    "val_size": _Reading(
        lambda value: [] if not float(value) else [("data.split", {"validation": float(value)})] if float(value) < 1
        else None
    ),
    "quantization_bit": _choice("model.quantization", {"4": "nf4", "8": "int8", "none": []}),
    "flash_attn": _choice("model.attention", _ATTENTION),
    "use_unsloth": _IGNORED,
    "enable_liger_kernel": _flag(("training.liger", True)),
    "train_on_prompt": _flag(("method.loss_on", "all")),
    "max_samples": _Reading(lambda value: [("data.max_rows", int(value))] if value else []),
    "preprocessing_num_workers": _number("data.processes", int),
    "plot_loss": _Reading(lambda value: [("logging.plots", bool(value))]),
    "overwrite_cache": _IGNORED,
    "quantization_method": _choice("", {"bnb": [], "bitsandbytes": []}),
    "save_only_model": _IGNORED,
}  # fmt: skip

_AXOLOTL: dict[str, _Reading] = {
    **{key: _ARGUMENTS[key] for key in ("learning_rate", "max_steps", "gradient_accumulation_steps", "weight_decay",
       "max_grad_norm", "seed", "gradient_checkpointing", "tf32", "dataloader_num_workers", "logging_steps",
       "save_steps", "save_total_limit", "load_in_4bit", "load_in_8bit", "trust_remote_code", "lora_r", "lora_alpha",
       "lora_dropout", "lora_target_modules", "neftune_noise_alpha", "bf16", "fp16", "output_dir",
       "resume_from_checkpoint", "save_strategy", "eval_strategy", "group_by_length")},
    "base_model": _to("model.base"),
    "rl": _choice("method.kind", {"dpo": "dpo", "kto": "kto", "orpo": "orpo", "grpo": "grpo", "ipo": [
        ("method.kind", "dpo"), ("method.loss_type", "ipo")]}),
    "rl_beta": _number("method.beta"),
    "reward_model": _flag(("method.kind", "reward")),
    "adapter": _choice("adapter.kind", {"lora": "lora", "qlora": [("adapter.kind", "lora"),
                                        ("model.quantization", "nf4")], "none": "none", "": "none"}),
    "peft_use_dora": _flag(("adapter.kind", "dora")),
    "peft_use_rslora": _flag(("adapter.kind", "rslora")),
    "lora_target_linear": _flag(("adapter.targets", "all-linear")),
    "sequence_len": _number("data.max_length", int),
    "sample_packing": _flag(("data.packing", True)),
    "pad_to_sequence_len": _IGNORED,
    "val_set_size": _Reading(
        lambda value: [] if not float(value) else [("data.split", {"validation": float(value)})] if float(value) < 1
        else None
    ),
    "micro_batch_size": _number("training.micro_batch", int),
    "num_epochs": _number("training.epochs"),
    "optimizer": _choice("training.optimizer", _OPTIMIZERS),
    "lr_scheduler": _choice("training.scheduler", _SCHEDULERS),
    "train_on_inputs": _flag(("method.loss_on", "all")),
    "flash_attention": _flag(("model.attention", "flash_attention_2")),
    "sdp_attention": _flag(("model.attention", "sdpa")),
    "eager_attention": _flag(("model.attention", "eager")),
    "wandb_project": _Reading(lambda value: [("logging.wandb", {"project": str(value)})] if value else []),
    "dataset_prepared_path": _IGNORED,
    "strict": _IGNORED,
    "model_type": _IGNORED,
    "tokenizer_type": _IGNORED,
    "save_safetensors": _IGNORED,
    "eval_sample_packing": _IGNORED,
}  # fmt: skip

_PROGRAMS = (
    ("axolotl", _AXOLOTL, ("base_model", "datasets", "micro_batch_size", "sequence_len")),
    ("llamafactory", _LLAMA_FACTORY, ("finetuning_type", "stage", "cutoff_len", "lora_target")),
    ("transformers", _ARGUMENTS, ("per_device_train_batch_size", "num_train_epochs", "learning_rate", "optim")),
)
_FORMATS = {"alpaca": "alpaca", "chat_template": "messages", "sharegpt": "sharegpt", "completion": "text"}


def read_foreign(document: Any, file: str, directory: Path = Path()) -> Imported:
    """The profile that a file of another program stands for. `directory` is the folder of the file. Raises ValueError
    for one that is of none of them."""
    if not isinstance(document, dict):
        raise ValueError(f"{file} is no mapping of settings")
    document = {str(key).removeprefix("--").replace("-", "_"): value for key, value in document.items()}
    marks = {name: sum(key in document for key in keys) for name, _, keys in _PROGRAMS}
    # LLaMA-Factory takes the arguments of transformers, too: its own keys decide, however few they are beside them.
    program = next((name for name in marks if marks[name] > 1), "transformers")
    if marks[program] < 2:
        raise ValueError(f"{file} is no configuration of LLaMA-Factory or Axolotl, and no arguments of transformers")
    table = next(table for name, table, _ in _PROGRAMS if name == program)
    settings: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    remarks: list[str] = []
    special = {"warmup_ratio", "warmup_steps", "datasets", "test_datasets", "dataset", "dataset_dir", "eval_dataset"}
    unused = {f"{each}_steps" for each in ("save", "eval", "logging")
              if str(document.get(f"{each}_strategy")).lower().rpartition(".")[2] in ("no", "epoch")}  # fmt: skip
    for key, value in document.items():
        if key in special | unused or (value is None and key in table):
            continue
        try:
            found = table[key].read(value) if key in table else None
        except (TypeError, ValueError, OverflowError):
            found = None
        if found is None:
            if value not in (None, False, "", [], {}):  # a default that is off needs no counterpart
                left_out[key] = value
            continue
        for setting, each in found:
            if setting:
                _put(settings, setting, each)
    _read_warmup(document, settings)
    left_out |= dict(_read_data(program, document, settings, directory))
    settings.setdefault("method", {}).setdefault("kind", "sft")
    settings.setdefault("adapter", {}).setdefault("kind", _choose_adapter(program, settings))
    if settings["adapter"]["kind"] == "none":
        dropped = settings["adapter"].keys() - {"kind"}
        left_out |= {f"adapter.{key}": settings["adapter"][key] for key in sorted(dropped)}
        settings["adapter"] = {"kind": "none"}
    if "name" in settings:
        settings["name"] = re.sub(r"[^A-Za-z0-9-]+", "-", str(settings["name"])).strip("-")[:60] or "imported"
    remarks.append(f"what {file} does not set has cockpit's default, which may be another one than {program}'s")
    if isinstance(rank := document.get("world_size"), int) and rank > 1:
        remarks.append(f"launch.processes is left at its default; the file was for {rank} processes")
    return Imported(settings, program, left_out, remarks)


def _choose_adapter(program: str, settings: Mapping[str, Any]) -> str:
    """What the program trains where its file does not say: LLaMA-Factory an adapter, Axolotl all weights."""
    if program != "transformers":
        return "lora" if program == "llamafactory" else "none"
    quantized = settings.get("model", {}).get("quantization") in ("nf4", "int8")
    return "lora" if settings.get("adapter") or quantized else "none"


def _put(settings: dict[str, Any], key: str, value: Value) -> None:
    section, _, name = key.partition(".")
    if not name:
        settings[section] = value
    else:
        settings.setdefault(section, {})[name] = value


def _read_warmup(document: Mapping[str, Any], settings: dict[str, Any]) -> None:
    """Steps win over a share, as in transformers."""
    for key in ("warmup_steps", "warmup_ratio"):
        try:
            if warmup := float(document.get(key) or 0):
                _put(settings, "training.warmup", int(warmup) if key == "warmup_steps" and warmup >= 1 else warmup)
                return
        except (TypeError, ValueError, OverflowError):
            continue


def _read_data(
    program: str, document: Mapping[str, Any], settings: dict[str, Any], directory: Path
) -> Iterator[tuple[str, Any]]:
    """Put the sources into `settings`; yields what has no counterpart."""
    if program == "axolotl":
        for key, part in (("datasets", "train"), ("test_datasets", "validation")):
            sources = []
            given = document.get(key) or []
            for number, each in enumerate(given if isinstance(given, list) else [given]):
                if not isinstance(each, dict) or not each.get("path"):
                    yield f"{key}.{number}", each
                    continue
                files = each.get("data_files")
                names = files if isinstance(files, list) else [files or each["path"]]
                form = _FORMATS.get(str(each.get("type")))
                sources += [{"source": str(name)} | ({"format": form} if form else {}) for name in names]
                further = each.keys() - {"path", "data_files", "ds_type"} - ({"type"} if form else set())
                yield from ((f"{key}.{number}.{name}", each[name]) for name in sorted(further))
            if sources:
                _put(settings, f"data.{part}", sources)
        return
    names = _names(document.get("dataset"))
    if names:
        _put(settings, "data.train", [{"source": name} for name in names])
        _put(settings, "data.catalog", str(Path(str(document.get("dataset_dir") or "data")) / "dataset_info.json"))
    if held_out := _names(document.get("eval_dataset")):
        _put(settings, "data.validation", [{"source": name} for name in held_out])


def _names(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else str(value or "").split(",")
    return [str(text).strip() for text in texts if str(text).strip()]
