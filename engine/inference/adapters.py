"""Adapters on a loaded base, changed without touching the base's weights.

Building 210 of peft's layers takes a quarter of a second, loading weights into them a sixth of that. So the layers are
kept: they are detached while the base answers alone, and resized for an adapter of the same layers with another rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models import files, folders
from engine.models.libraries import collecting_no_garbage

_SIZES = ("r", "lora_alpha")
"""Settings of a LoRA that may differ for its layers to be resized."""
_PLAIN = ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "modules_to_save", "target_parameters")
"""Settings that must be unused for that."""


class Adapters:
    """One base with at most one adapter. `model` is the base alone, or a PeftModel around it, in evaluation mode."""

    def __init__(self, base: Any) -> None:
        self.base = self.model = base
        self._wrapped: Any = None
        """The PeftModel, whether in use or not."""
        self._adapter: Path | None = None
        """The adapter whose layers it has."""
        self._out: list[tuple[Any, str, Any]] = []
        """Detached layers: parent, name, layer."""

    def put(self, adapter: Path | None) -> None:
        """Change to this adapter, or to the base alone.

        Raises what peft and safetensors raise for an adapter that cannot be read or does not fit; nothing has changed
        then.
        """
        before = self._adapter if self._wrapped is not None and self.model is not self.base else None
        try:
            self._put(adapter)
        except Exception:
            self._drop()
            if before is not None:
                self._build(before)
            raise

    def _put(self, adapter: Path | None) -> None:
        if adapter is None:
            self._detach()
        elif not self._refill(adapter):
            self._drop()
            self._build(adapter)

    def _build(self, adapter: Path) -> None:
        """Without `low_cpu_mem_usage`: peft 0.21 would round the float32 weights to a 16-bit base's dtype."""
        from peft import PeftModel

        with collecting_no_garbage():  # else thousands of new objects would have it start again and again
            self._wrapped = PeftModel.from_pretrained(self.base, adapter, torch_device=str(self.base.device)).eval()
        self.model, self._adapter = self._wrapped, adapter

    def _refill(self, adapter: Path) -> bool:
        """Load this adapter's weights into the kept layers; returns whether that was possible."""
        from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

        if self._wrapped is None or self._adapter is None or self._wrapped.active_peft_config.is_prompt_learning:
            return False
        kept, needed = _layer_config(self._adapter), _layer_config(adapter)
        if kept != needed and not _is_resizable(kept, needed):
            return False
        weights = load_peft_weights(str(adapter), device=str(self.base.device))
        self._reattach()
        name = self._wrapped.active_adapter
        if kept != needed:
            config = PeftConfig.from_pretrained(str(adapter))
            config.inference_mode = True
            _resize(self._wrapped, name, config)
        left = set_peft_model_state_dict(self._wrapped, weights, name).missing_keys
        self.model, self._adapter = self._wrapped, adapter
        # An adapter that lacks weights for a layer must not keep those of the last one.
        return not any(f".{name}." in key for key in left)

    def _detach(self) -> None:
        if self.model is self.base:
            return
        from peft.utils import ModulesToSaveWrapper

        if not self._wrapped.active_peft_config.is_prompt_learning:  # it leaves the base itself unchanged
            self._out = self._bare()
            if any(isinstance(layer, ModulesToSaveWrapper) for _, _, layer in self._out):
                self._wrapped, self._out = None, []
        self.model = self.base

    def _bare(self) -> list[tuple[Any, str, Any]]:
        """Replace the adapter's layers by the base's own; returns each with its parent and name."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        found = []
        for parent in [*self.base.modules()]:
            for name, layer in [*parent.named_children()]:
                if isinstance(layer, BaseTunerLayer):
                    setattr(parent, name, layer.get_base_layer())
                elif isinstance(layer, ModulesToSaveWrapper):
                    setattr(parent, name, layer.original_module)
                else:
                    continue
                found.append((parent, name, layer))
        return found

    def _reattach(self) -> None:
        for parent, name, layer in self._out:
            setattr(parent, name, layer)
        self.model, self._out = self._wrapped, []

    def _drop(self) -> None:
        """Go back to the base alone, keeping nothing."""
        self._bare()
        if hasattr(self.base, "peft_config"):
            del self.base.peft_config  # else peft warns of two adapters on one model
        self.model, self._wrapped, self._adapter, self._out = self.base, None, None, []


def _layer_config(adapter: Path) -> dict[str, Any]:
    """An adapter's config without the place of its base: what its layers depend on."""
    config: dict[str, Any] = files.read_json_object(adapter / folders.ADAPTER)
    return {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}


def _is_resizable(kept: dict[str, Any], needed: dict[str, Any]) -> bool:
    def without_sizes(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in _SIZES}

    return (
        needed.get("peft_type") == "LORA"
        and without_sizes(kept) == without_sizes(needed)
        and not any(needed.get(key) for key in _PLAIN)
        and isinstance(needed.get("init_lora_weights", True), bool)
    )


def _resize(model: Any, name: str, config: Any) -> None:
    """Give the LoRA layers of `model` the rank of `config`."""
    from peft.tuners.lora import LoraLayer

    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        layer.update_layer(name, config.r, config.lora_alpha, config=config)
        for matrix in (layer.lora_A[name], layer.lora_B[name]):
            matrix.float()  # as peft itself does when it loads weights
    model.peft_config[name] = config
    model.requires_grad_(False)
    model.eval()
