"""Decoding with prefix or prompt tuning: the trained positions are a cache that the base goes on from.

peft puts them in front of every forward pass, also of one that goes on from a cache. Read once, they cost nothing for the tokens
after, and all that decodes needs to know only how many positions came before.
"""

from __future__ import annotations

from typing import Any


def opened(model: Any) -> tuple[Any, Any, int]:
    """What is to decode, the cache that it begins with (of one row), and how many positions that holds.

    That is `(model, None, 0)` for all but prefix and prompt tuning. Call without gradients.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return model, None, 0
    count = int(model.active_peft_config.num_virtual_tokens)
    base = model.get_base_model()
    prompt = model.get_prompt(batch_size=1)
    if str(model.active_peft_config.peft_type.value) == "PROMPT_TUNING":
        embeddings = prompt.to(base.get_input_embeddings().weight.dtype)
        prompt = base(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1).past_key_values
    return base, prompt, count
