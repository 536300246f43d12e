"""Tokenise as one would write it with `datasets` and a fast tokenizer: `datasets_map.py ROWS MODEL PROCESSES
FOLDER`."""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    from datasets import disable_progress_bars, load_dataset
    from pyarrow import compute
    from transformers import AutoTokenizer

    from bench.tokenizers.clock import clock

    rows, model, processes, folder = sys.argv[1:]
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = load_dataset("json", data_files=rows, split="train", cache_dir=folder)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        chats = [
            [
                {"role": "user", "content": f"{instruction}\n{more}" if more else instruction},
                {"role": "assistant", "content": output},
            ]
            for instruction, more, output in zip(batch["instruction"], batch["input"], batch["output"], strict=True)
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False, truncation=True, max_length=1024)["input_ids"]}

    with clock() as told:
        done = loaded.map(
            encode,
            batched=True,
            remove_columns=loaded.column_names,
            num_proc=int(processes) if processes != "1" else None,
        )
    tokens = compute.sum(compute.list_value_length(done.data.column("input_ids"))).as_py()
    print(json.dumps({**told, "tokens": tokens}))


if __name__ == "__main__":
    main()
