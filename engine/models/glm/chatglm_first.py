"""ChatGLM-6B, the first generation: a transformers model whose weights have the names of the original files.

Importing this module registers it with the Auto classes. Unlike in today's decoders, residual branches start at the
LayerNorm's output and are scaled by sqrt(2 · 28) whatever the depth; attention and positions are described in
`positions`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from engine.models.glm.config_first import ChatGLMConfig
from engine.models.glm.generations import Generation
from engine.models.glm.positions import Marks, compute_positions, compute_rotation, mark_tokens, rotate
from engine.models.glm.verify_weights import check

RESIDUAL = math.sqrt(2 * 28)


class ChatGLMAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads, self.width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, attends: Tensor, cosine: Tensor, sine: Tensor, past_key_values: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        shape = hidden.shape[:2]
        mixed = self.query_key_value(hidden).view(*shape, self.heads, 3 * self.width).transpose(1, 2)
        query, key, value = mixed.chunk(3, -1)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager)
        context, weights = attend(self, query, key, value, attends, scaling=self.width**-0.5)
        return self.dense(context.reshape(*shape, -1)), weights


def _eager(
    module: ChatGLMAttention, query: Tensor, key: Tensor, value: Tensor, attends: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Divide scores by the layer's number before the product and multiply by it after, which keeps float16 in range."""
    depth = module.layer + 1
    scores = (query * (scaling / depth)) @ key.transpose(2, 3)
    weights = (scores.float() * depth).masked_fill(~attends, torch.finfo(torch.float32).min).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        widened: Tensor = functional.gelu(self.dense_h_to_4h(hidden), approximate="tanh")
        narrowed: Tensor = self.dense_4h_to_h(widened)
        return narrowed


class ChatGLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self, hidden: Tensor, attends: Tensor, cosine: Tensor, sine: Tensor, past_key_values: Cache | None = None
    ) -> Tensor:
        normed = self.input_layernorm(hidden)
        attended, _ = self.attention(normed, attends, cosine, sine, past_key_values)
        normed = self.post_attention_layernorm(normed * RESIDUAL + attended)
        output: Tensor = normed * RESIDUAL + self.mlp(normed)
        return output


class ChatGLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    reads_both_ways = True
    """The context attends in both directions: neither concatenated rows nor a common prefix of prompts can be computed
    alone."""
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}


class ChatGLMModel(ChatGLMPreTrainedModel):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, layer) for layer in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states.

        `input_ids` [batch, new tokens]. `attention_mask` [batch, tokens so far], 0 on padding; or bool [batch, 1, new
        tokens, tokens so far], True where a token attends. `position_ids` [batch, 2, new tokens]. Both are computed
        from the ids when they are not given. Positions of one dimension, which callers compute for other models, are
        ignored.
        """
        if (self.config.use_cache if use_cache is None else use_cache) and not self._recomputes():
            past_key_values = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        positions, attends = self._read(input_ids, attention_mask, past_key_values)
        if position_ids is not None and position_ids.dim() == 3:
            positions = position_ids
        if attention_mask is not None and attention_mask.dim() == 4:
            attends = attention_mask
        hidden = self.word_embeddings(input_ids)
        width = self.config.hidden_size // self.config.num_attention_heads // 2
        cosine, sine = compute_rotation(positions, width, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, attends, cosine, sine, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(hidden), past_key_values=past_key_values)

    def _recomputes(self) -> bool:
        return self.training and self.gradient_checkpointing

    def _read(self, ids: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Positions and attention of the new tokens, computed from all ids so far.

        The ids are stored in the cache as one more layer, so that reordering, repeating, selecting or cropping its rows
        includes them.
        """
        new = ids.shape[1]
        marks = Marks(
            self.config.bos_token_id, self.config.gmask_token_id, self.config.mask_token_id, self.config.pad_token_id
        )
        past = cache.get_seq_length() if cache is not None else 0
        if mask is not None and mask.dim() == 2:
            held = mask[:, -new:].bool()
        else:
            held = mark_tokens(ids, marks) if past == 0 else torch.ones_like(ids, dtype=torch.bool)
        if cache is not None:
            if cache.layer_class_to_replicate is None and len(cache.layers) == self.config.num_layers:
                cache.layers.append(DynamicLayer())
            stored = cache.update(ids[:, None, :, None], held.long()[:, None, :, None], self.config.num_layers)
            ids, held = stored[0][:, 0, :, 0], stored[1][:, 0, :, 0].bool()
        positions, attends = compute_positions(ids, held, marks)
        return positions[..., -new:], attends[:, :, -new:]


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The class name of the original config.json; for the Auto classes it is a causal language model."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **arguments: Any,
    ) -> CausalLMOutputWithPast:
        """As `ChatGLMModel.forward`. `labels` [batch, tokens], -100 at positions without loss, give a mean loss."""
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **arguments,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)


def load(name: str, generation: Generation, arguments: dict[str, Any]) -> ChatGLMForConditionalGeneration:
    """Load the model of a folder or hub id; `arguments` are those of `from_pretrained`. Raises ProblemError when
    weights are missing, and transformers' errors."""
    config = ChatGLMConfig(**generation.sizes.model_dump())
    model, report = ChatGLMForConditionalGeneration.from_pretrained(
        name, config=config, output_loading_info=True, **arguments
    )
    check(name, generation, report)
    model.generation_config.eos_token_id = generation.sizes.eos_token_id
    return model
