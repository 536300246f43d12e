"""The tokenizer of ChatGLM2-6B and ChatGLM3-6B as a fast tokenizer, from the folder's own `tokenizer.model`.

The file is a sentencepiece BPE model: characters stay as they are, unknown ones become bytes, and a space is put before
each text. The special tokens are in no file; their ids follow those of the pieces. Plain `AutoTokenizer` reads what
`save_pretrained` writes, without code of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.models.glm import literal, pieces
from engine.models.glm.conversations import read_template
from engine.models.glm.pieces import BPE, NORMAL, Piece

FILE = "tokenizer.model"
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""In the order of their ids, which start after those of the pieces."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""Special tokens of the third generation only, after the others."""
_WORDS = ("sop", "eop")
"""Special tokens that occur inside words (people, geopolitics), where they are not recognised."""


def build(folder: Path, generation: int) -> Any:
    """Build the `PreTrainedTokenizerFast` of the second or third generation. Raises ProblemError when the file cannot
    be used."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = pieces.read(folder / FILE, BPE, charsmap=False).listed
    vocabulary = {piece.text: number for number, piece in enumerate(listed)}
    backend = Tokenizer(
        models.BPE(vocabulary, list_merges(listed), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
            *(normalizers.Replace(mark, text) for mark, text in literal.UNDONE),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = (*SPECIAL, *(ROLES if generation == 3 else ()))
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")]
        + [AddedToken(name, normalized=False, special=True, single_word=name in _WORDS) for name in special]
    )
    ids = [(name, backend.token_to_id(name)) for name in ("[gMASK]", "sop", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A", pair="[gMASK] sop $A $B </s>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=read_template(generation),
    )


def list_merges(listed: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs that sentencepiece merges, in the order in which it merges them.

    It always merges the neighbours whose merged piece has the highest score. So each way to split a piece into two
    pieces is a merge with the piece's score.
    """
    normal = {piece.text: piece.score for piece in listed if piece.kind == NORMAL}
    found = [
        (-score, text[:at], text[at:])
        for text, score in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return [(left, right) for _, left, right in sorted(found, key=lambda each: each[0])]
