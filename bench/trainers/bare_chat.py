"""The first token of a reply by transformers alone: `python -m bench.trainers.bare_chat MODEL PROMPT`."""

from __future__ import annotations

import sys


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, prompt = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    messages = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = loaded.generate(**given, max_new_tokens=1, do_sample=False)
    print(tokenizer.decode(reply[0, given["input_ids"].shape[1] :]), flush=True)


if __name__ == "__main__":
    main()
