"""Fine-tune with trl's `SFTTrainer` as it comes: `trl.py ROWS MODEL QUANTIZATION FOLDER [float32]`.

As it comes it checkpoints gradients and computes in bfloat16, which most CPUs only emulate. `float32` is what a user
may find who looks for the cause: both switched off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from bench.trainers.clock import SETTINGS, Clock

    rows, model, quantization, folder, *changes = sys.argv[1:]
    plain = "float32" in changes
    clock = Clock()
    sys.path[:] = [
        place for place in sys.path if Path(place) != Path(__file__).parent
    ]  # this file has the package's name
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    class Timed(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            tokens = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
            clock.step_begins()
            loss = super().training_step(model, inputs, *rest, **named)
            clock.step_ends(tokens)
            return loss

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if plain else torch.bfloat16,
    )
    trainer = Timed(
        model=model,
        args=SFTConfig(
            output_dir=f"{folder}/out",
            per_device_train_batch_size=SETTINGS["batch"],
            learning_rate=SETTINGS["learning_rate"],
            max_length=SETTINGS["max_length"],
            num_train_epochs=1,
            seed=SETTINGS["seed"],
            report_to="none",
            model_init_kwargs={"quantization_config": nf4} if quantization == "nf4" else {},
            **({"bf16": False, "gradient_checkpointing": False} if plain else {}),
            save_strategy="no",
            use_cpu=not torch.accelerator.is_available(),  # it refuses bf16 on a CPU without being told
        ),
        train_dataset=Dataset.from_list([_split(row) for row in json.loads(Path(rows).read_text())]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=SETTINGS["rank"], lora_alpha=SETTINGS["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    told = clock.figures()
    trainer.save_model(f"{folder}/adapter")
    print(json.dumps(told))


def _split(row: dict[str, str]) -> dict[str, Any]:
    asked = "\n".join(filter(None, (row["instruction"], row["input"])))
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


if __name__ == "__main__":
    main()
