"""Tokenise with cockpit: `cockpit.py ROWS MODEL PROCESSES FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from transformers import AutoTokenizer

    from bench.tokenizers.clock import clock
    from engine.prep import token_store  # noqa: F401 - loading libraries is not measured
    from engine.prep.rows import Rejects
    from engine.prep.tokenize_files import tokenize_rows

    rows, model, processes, folder = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model)
    with clock() as told:
        into, work = Path(folder, "set"), Path(folder, "work")
        made = tokenize_rows(
            [Path(rows)], into, tokenizer, "assistant", 1024, Rejects(lambda _: None), work, int(processes),
            lambda *_: None, formats=["alpaca"],
        )  # fmt: skip
    print(json.dumps({**told, "tokens": made.counts.tokens}))


if __name__ == "__main__":
    main()
