"""Loads ChatGLM2, ChatGLM3 and GLM-4 in their original layout as transformers' own `GlmForCausalLM`."""

from __future__ import annotations

import copy
from typing import Any

from transformers import GenerationConfig, GlmConfig, GlmForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from engine.models.glm.generations import Generation, translate_config
from engine.models.glm.verify_weights import check

_RENAMED = (
    (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
    (r"^transformer\.encoder\.layers\.", "model.layers."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
    (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
    (r"^transformer\.output_layer\.", "lm_head."),
)


class OriginalGlm(GlmForCausalLM):
    """`GlmForCausalLM` while it reads original files: transformers looks conversions up by the class's name."""

    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]


def load(name: str, generation: Generation, arguments: dict[str, Any]) -> Any:
    """Load a `GlmForCausalLM` with the weights of `name`, a folder or hub id; `arguments` are those of
    `from_pretrained`.

    Its class and the files that it saves are transformers' own, so nothing else needs to know where it came from.
    Raises ProblemError when weights are missing, and transformers' errors.
    """
    register_checkpoint_conversion_mapping(OriginalGlm.__name__, _list_conversions(), overwrite=True)
    config = GlmConfig(**translate_config(generation))
    model, report = OriginalGlm.from_pretrained(name, config=config, output_loading_info=True, **arguments)
    check(name, generation, report)
    # With either, save_pretrained would write the original names beside a config that says `glm`.
    model.__class__ = GlmForCausalLM
    del model._weight_conversions
    # transformers took these from the original config.json, which names one of several stop tokens.
    model.generation_config = _merge_generation_config(model.generation_config, config)
    return model


def _merge_generation_config(found: GenerationConfig, config: GlmConfig) -> GenerationConfig:
    """`found` with the stop tokens of both: generation_config.json may name more than config.json."""
    merged = copy.deepcopy(found)
    stops = [config.eos_token_id, found.eos_token_id]
    flat = [token for each in stops for token in (each if isinstance(each, list) else [each]) if token is not None]
    unique = list(dict.fromkeys(flat))
    merged.eos_token_id = unique if len(unique) > 1 else unique[0]
    merged.pad_token_id = config.pad_token_id
    merged._from_model_config = False
    return merged


def _list_conversions() -> list[Any]:
    splits = [
        WeightConverter(
            source_patterns=f"self_attention.query_key_value.{part}",
            target_patterns=[f"self_attn.{each}_proj.{part}" for each in "qkv"],
            operations=[Split(dim=0)],
        )
        for part in ("weight", "bias")
    ]
    return [*(WeightRenaming(old, new) for old, new in _RENAMED), *splits]
