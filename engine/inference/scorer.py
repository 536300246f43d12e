"""A reward model in memory: token ids to scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.models import tokenizers
from engine.models.base import Progress, load
from engine.models.devices import Device
from engine.options.model import ModelOptions


class Scorer:
    """A frozen reward model that computes as its training does on `device`."""

    def __init__(
        self,
        base: str,
        adapter: str | Path | None,
        tokenizer: str | Path,
        options: ModelOptions,
        device: Device,
        progress: Progress = lambda done, total: None,
        *,
        unpack: bool = True,
    ) -> None:
        """`tokenizer` is the folder of one; `options` and `unpack` are as for `base.load`. Raises ProblemError."""
        from peft import PeftModel

        model = load(base, options, device, progress, unpack=unpack, scores=True)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        self.tokenizer = tokenizers.load(tokenizer)
        # The model's class finds the last token by it, as in training.
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model, self._device = model.requires_grad_(False).eval(), device

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The scores of sequences of token ids, computed in one pass, in their order."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(each, device=self._device.name) for each in sequences]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        masks = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.no_grad(), self._device.autocast():
            logits = self.model(input_ids=ids, attention_mask=masks, use_cache=False).logits[:, 0]
        scores: list[float] = logits.float().tolist()
        return scores
