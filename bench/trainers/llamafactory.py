"""Fine-tune with LLaMA-Factory as it comes: `llamafactory.py ROWS MODEL QUANTIZATION FOLDER`, by an interpreter that
has it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from bench.trainers.clock import SETTINGS, Clock

    rows, model, quantization, folder = sys.argv[1:]
    clock = Clock()
    sys.path[:] = [
        place for place in sys.path if Path(place) != Path(__file__).parent
    ]  # this file has the package's name
    from llamafactory.train.sft import trainer as theirs
    from llamafactory.train.tuner import run_exp

    step = theirs.CustomSeq2SeqTrainer.training_step

    def timed(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        tokens = int(inputs["attention_mask"].sum())
        loss = step(self, model, inputs, *rest, **named)
        clock.step_ends(tokens)
        return loss

    theirs.CustomSeq2SeqTrainer.training_step = timed
    info = {"rows": {"file_name": rows, "formatting": "alpaca"}}
    Path(folder, "dataset_info.json").write_text(json.dumps(info))
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": model,
            "dataset": "rows",
            "dataset_dir": folder,
            "template": "smollm2",
            "cutoff_len": SETTINGS["max_length"],
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": SETTINGS["rank"],
            "lora_alpha": SETTINGS["alpha"],
            "per_device_train_batch_size": SETTINGS["batch"],
            "learning_rate": SETTINGS["learning_rate"],
            "num_train_epochs": 1,
            "seed": SETTINGS["seed"],
            "output_dir": f"{folder}/adapter",
            "report_to": "none",
            "save_strategy": "no",
            **({"quantization_bit": 4, "quantization_method": "bnb"} if quantization == "nf4" else {}),
        }
    )
    print(json.dumps(clock.figures()))


if __name__ == "__main__":
    main()
