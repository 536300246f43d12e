"""Prepared rows token by token, for display: the text of each token, and whether it is trained."""

from __future__ import annotations

from typing import Any


def reply_parts(tokenizer: Any, row: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The prompt of a prepared row with each of its replies as `{name, pieces}`; replies count as trained. A row
    without replies has one part, its prompt."""
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    prompt = row["prompt_ids"]
    if not names:
        return [{"name": "prompt", "pieces": pieces(tokenizer, prompt, [False] * len(prompt))}]
    return [
        {
            "name": ("good" if row["label"][0] else "bad") if "label" in row else name,
            "pieces": pieces(
                tokenizer, prompt + row[f"{name}_ids"], [False] * len(prompt) + [True] * len(row[f"{name}_ids"])
            ),
        }
        for name in names
    ]


def pieces(tokenizer: Any, ids: list[int], trained: list[bool]) -> list[dict[str, Any]]:
    """Each token with the text that it completes, special tokens included; a token that ends inside a character has no
    text."""
    found, at, shown = [], 0, ""
    for number, (token, is_trained) in enumerate(zip(ids, trained, strict=True), 1):
        text = tokenizer.decode(ids[at:number], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd")
        found.append({"text": text[len(shown) :] if whole else "", "id": token, "trained": is_trained})
        if whole:
            # Decode on from the last complete token: some tokenizers write a token differently when it comes first.
            at, shown = (
                number - 1,
                tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False),
            )
    return found
