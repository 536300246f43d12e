"""The tokenizer of ChatGLM-6B, with the folder's own `ice_text.model`: its ids are sentencepiece's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizer
from transformers.utils import is_torch_available

from engine.models.glm import pieces
from engine.models.glm.config_first import ChatGLMConfig
from engine.models.glm.encoder import BLANKS, FILE, LINE, LONGEST, SPECIAL, TAB, Encoder
from engine.models.glm.pieces import USER_DEFINED


class ChatGLM1Tokenizer(PreTrainedTokenizer):
    """The tokenizer of ChatGLM-6B. Importing this module lets `AutoTokenizer` read what `save_pretrained` writes."""

    vocab_files_names = {"vocab_file": FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        mask_token: str = "[MASK]",
        clean_up_tokenization_spaces: bool = False,
        **settings: Any,
    ) -> None:
        found = pieces.read(Path(vocab_file), pieces.UNIGRAM, charsmap=True)
        kinds = {piece.text: piece.kind for piece in found.listed}
        required = (LINE, TAB, *(BLANKS.format(length) for length in range(2, LONGEST + 1)))
        missing = [name for name in SPECIAL if name not in kinds]
        missing += [name for name in required if kinds.get(name) != USER_DEFINED]
        if missing:
            raise pieces.unusable_file(Path(vocab_file), f"it lacks {', '.join(missing[:3])}: it is not ChatGLM-6B's")
        self.backend_tokenizer = Encoder(found.content)
        settings.setdefault("extra_special_tokens", ["[gMASK]", "[sMASK]", "<s>", "</s>"])
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **settings,
        )

    @property
    def vocab_size(self) -> int:
        return len(self.backend_tokenizer)

    def get_vocab(self) -> dict[str, int]:
        return {self.backend_tokenizer.piece(number): number for number in range(self.vocab_size)}

    def tokenize(self, text: str, split_special_tokens: bool | None = None, **_: Any) -> list[str]:
        """Split a text into pieces. With `split_special_tokens`, special tokens in it are text."""
        as_text = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        found = self.backend_tokenizer.encode(text, add_special_tokens=False, cut=not as_text)
        return [self.backend_tokenizer.piece(number) for number in found.ids]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A text, `[gMASK]` and `<sop>`; for a pair also the second text and `<eop>`."""
        opening = [*token_ids_0, *self.backend_tokenizer.opening]
        return opening if token_ids_1 is None else [*opening, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        ids = (
            token_ids_0
            if already_has_special_tokens
            else self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        )
        special = set(self.all_special_ids)
        return [int(number in special) for number in ids]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{FILE}"
        path.write_bytes(self.backend_tokenizer.to_bytes())
        return (str(path),)

    def _convert_token_to_id(self, token: str) -> int:
        return self.backend_tokenizer.number(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.backend_tokenizer.piece(index) if index < self.vocab_size else self.unk_token

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        ids = [self.backend_tokenizer.number(token) for token in tokens]
        return self.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        text = self.backend_tokenizer.decode(ids, skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text


AutoTokenizer.register(ChatGLMConfig, tokenizer_class=ChatGLM1Tokenizer, exist_ok=True)
if is_torch_available():  # published model cards import this module alone, and load the model too
    from engine.models.glm import chatglm_first  # noqa: F401
