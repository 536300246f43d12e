"""Prepared rows token by token, for a screen: the text of each token, and whether it is trained."""

from __future__ import annotations

from typing import Any


def reply_parts(tokenizer: Any, row: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The prompt of a prepared preference row with each of its replies: `{name, pieces}`. What is compared counts as trained.
    A prompt that is to be answered stands alone."""
    names = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in row]
    asked = row["prompt_ids"]
    if not names:
        return [{"name": "prompt", "pieces": pieces(tokenizer, asked, [False] * len(asked))}]
    return [
        {
            "name": ("good" if row["label"][0] else "bad") if "label" in row else name,
            "pieces": pieces(
                tokenizer, asked + row[f"{name}_ids"], [False] * len(asked) + [True] * len(row[f"{name}_ids"])
            ),
        }
        for name in names
    ]


def pieces(tokenizer: Any, ids: list[int], trained: list[bool]) -> list[dict[str, Any]]:
    """Each token with the text that became certain with it, special tokens included; a part of a character shows nothing."""
    found, at, told = [], 0, ""
    for number, (token, is_trained) in enumerate(zip(ids, trained, strict=True), 1):
        text = tokenizer.decode(ids[at:number], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd")
        found.append({"text": text[len(told) :] if whole else "", "id": token, "trained": is_trained})
        if whole:
            # From the last whole token on: some tokenizers write a token differently when it comes first.
            at, told = (
                number - 1,
                tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False),
            )
    return found
