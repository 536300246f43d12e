"""Tokenise with LLaMA-Factory: `llamafactory.py ROWS MODEL PROCESSES FOLDER`, by an interpreter that has it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    from bench.tokenizers.clock import clock

    rows, model, processes, folder = sys.argv[1:]
    sys.path.remove(str(Path(__file__).parent))  # this file has the package's name
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer, loader
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    info = {"rows": {"file_name": rows, "formatting": "alpaca"}}
    Path(folder, "dataset_info.json").write_text(json.dumps(info))
    settings: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": model,
        "dataset": "rows",
        "dataset_dir": folder,
        "template": "smollm2",
        "cutoff_len": 1024,
        "preprocessing_num_workers": int(processes),
        "output_dir": f"{folder}/out",
        "finetuning_type": "lora",
        "report_to": "none",
    }
    model_arguments, data_arguments, training_arguments, _, _ = get_train_args(settings)
    tokenizing = loader._get_preprocessed_dataset
    seconds: list[float] = []

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        made = tokenizing(*arguments, **named)
        seconds.append(time.perf_counter() - began)
        return made

    loader._get_preprocessed_dataset = timed
    module = load_tokenizer(model_arguments)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_arguments)
    with clock() as told:
        made = get_dataset(template, model_arguments, data_arguments, training_arguments, stage="sft", **module)
    tokens = sum(map(len, made["train_dataset"]["input_ids"]))
    print(json.dumps({**told, "tokenizing_seconds": seconds[0], "tokens": tokens}))


if __name__ == "__main__":
    main()
