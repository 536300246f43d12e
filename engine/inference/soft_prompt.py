"""Decoding with prefix or prompt tuning: the trained positions are computed once, into a cache that the base continues.

peft would put them in front of every forward pass, including those that continue a cache. Code that decodes only has to
know how many positions come first.
"""

from __future__ import annotations

from typing import Any

from engine.models.libraries import is_adapted


def start_cache(model: Any) -> tuple[Any, Any, int]:
    """The model to decode with, the cache to start from (of one row), and the number of positions in it.

    Without prefix or prompt tuning, or while it is off, that is `(model, None, 0)`. Call without gradients.
    """
    if not is_adapted(model) or not model.active_peft_config.is_prompt_learning:
        return model, None, 0
    if model._adapters_disabled:
        return model.get_base_model(), None, 0
    count = int(model.active_peft_config.num_virtual_tokens)
    base = model.get_base_model()
    prompt = model.get_prompt(batch_size=1)
    if str(model.active_peft_config.peft_type.value) == "PROMPT_TUNING":
        embeddings = prompt.to(base.get_input_embeddings().weight.dtype)
        prompt = base(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1).past_key_values
    return base, prompt, count
