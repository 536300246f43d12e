"""Adapters on a loaded base, changed without touching the base's weights.

Building peft's layers takes a quarter of a second for 210 of them, filling them with numbers a sixth of that. So the layers are kept: while the
base answers alone they are only taken out of it, and an adapter of the same layers with another rank makes them anew in place.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.models import folders

_SIZES = ("r", "lora_alpha")
"""What of a LoRA may differ for its layers to be resized."""
_PLAIN = ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "modules_to_save", "target_parameters")
"""And what must not be in use."""


class Adapters:
    """One base and at most one adapter on it. `model` is the base alone, or a PeftModel around it, in evaluation mode."""

    def __init__(self, base: Any) -> None:
        self.base = self.model = base
        self._wrapped: Any = None
        """The PeftModel that is kept, in use or not."""
        self._adapter: Path | None = None
        """Whose layers it has."""
        self._out: list[tuple[Any, str, Any]] = []
        """Layers that are taken out: parent, name, layer."""

    def put(self, adapter: Path | None) -> None:
        """Change to this adapter, or to the base alone. Raises what peft and safetensors raise for one that cannot be read or does not
        fit, and then all is as before."""
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
            self._take_out()
        elif not self._refilled(adapter):
            self._drop()
            self._build(adapter)

    def _build(self, adapter: Path) -> None:
        """Without `low_cpu_mem_usage`: peft 0.21 would round the float32 weights to a 16-bit base's dtype."""
        from peft import PeftModel

        with _uncollected():
            self._wrapped = PeftModel.from_pretrained(self.base, adapter, torch_device=str(self.base.device)).eval()
        self.model, self._adapter = self._wrapped, adapter

    def _refilled(self, adapter: Path) -> bool:
        """Whether the kept layers could take this adapter's numbers."""
        from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

        if self._wrapped is None or self._adapter is None or self._wrapped.active_peft_config.is_prompt_learning:
            return False
        kept, wanted = _shape(self._adapter), _shape(adapter)
        if kept != wanted and not _resizable(kept, wanted):
            return False
        weights = load_peft_weights(str(adapter), device=str(self.base.device))
        self._put_back()
        name = self._wrapped.active_adapter
        if kept != wanted:
            config = PeftConfig.from_pretrained(str(adapter))
            config.inference_mode = True
            _resize(self._wrapped, name, config)
        left = set_peft_model_state_dict(self._wrapped, weights, name).missing_keys
        self.model, self._adapter = self._wrapped, adapter
        # An adapter that lacks numbers for a layer must not keep those of the last one.
        return not any(f".{name}." in key for key in left)

    def _take_out(self) -> None:
        from peft.utils import ModulesToSaveWrapper

        if self.model is self.base:
            return
        if not self._wrapped.active_peft_config.is_prompt_learning:  # with it the base itself is as it was
            self._out = self._bared()
            if any(isinstance(layer, ModulesToSaveWrapper) for _, _, layer in self._out):
                self._wrapped, self._out = None, []
        self.model = self.base

    def _bared(self) -> list[tuple[Any, str, Any]]:
        """The adapter's layers, each with its parent and name, in whose place the base's own stand now."""
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

    def _put_back(self) -> None:
        for parent, name, layer in self._out:
            setattr(parent, name, layer)
        self.model, self._out = self._wrapped, []

    def _drop(self) -> None:
        """The base alone, and nothing kept."""
        self._bared()
        if hasattr(self.base, "peft_config"):
            del self.base.peft_config  # else peft warns of two adapters on one model
        self.model, self._wrapped, self._adapter, self._out = self.base, None, None, []


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: thousands of new objects would set it off, and each time it looks at all that torch and transformers hold."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _shape(adapter: Path) -> dict[str, Any]:
    """What an adapter's config says of its layers: everything but where its base came from."""
    config: dict[str, Any] = folders.read_json(adapter / folders.ADAPTER)
    return {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}


def _resizable(kept: dict[str, Any], wanted: dict[str, Any]) -> bool:
    def but_sizes(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in _SIZES}

    return (
        wanted.get("peft_type") == "LORA"
        and but_sizes(kept) == but_sizes(wanted)
        and not any(wanted.get(key) for key in _PLAIN)
        and isinstance(wanted.get("init_lora_weights", True), bool)
    )


def _resize(model: Any, name: str, config: Any) -> None:
    """Give the LoRA layers of `model` the rank of `config`."""
    from peft.tuners.lora import LoraLayer

    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        layer.update_layer(name, config.r, config.lora_alpha, config=config)
        for matrix in (layer.lora_A[name], layer.lora_B[name]):
            matrix.float()  # as peft itself does for what is loaded
    model.peft_config[name] = config
    model.requires_grad_(False)
    model.eval()
