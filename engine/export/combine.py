"""Combines several adapters of one base into one adapter, or several models of one shape into one model.

`linear` is the weighted sum of the changes that the adapters make; for whole models that of their weights, or of their
changes to a base. `ties` (Yadav et al. 2023, arXiv:2306.01708) keeps the largest part `density` of each change and the
sign that prevails; `dare_linear` and `dare_ties` (Yu et al. 2023, arXiv:2311.03099) keep a random part and scale it up.
The arithmetic is peft's.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models import files, folders, merge, plain_lora, targets
from engine.models.base_weights import KEY as BASE_WEIGHT_FILES
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines
from engine.storage import manifest
from engine.storage.atomic import write_folder

METHODS = ("linear", "ties", "dare_linear", "dare_ties")
_SPARSE = METHODS[1:]
_PLACES = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings by which a LoRA leaves layers out: peft takes the first adapter's for all."""
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Suffixes of files that a merged model does not get from the first one."""
_NAME = "combined"


@dataclass(frozen=True)
class Recipe:
    """`weights`: one for each model; empty: equal ones. `density`: the part of each change that is kept."""

    method: str = "linear"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    seed: int = 0

    def resolve(self, count: int) -> list[float]:
        """The weights of `count` models. Raises ProblemError."""
        if self.method not in METHODS:
            raise _refuse(f"the method is one of {', '.join(METHODS)}, not {self.method!r}")
        if not 0 < self.density <= 1:
            raise _refuse(f"the density is above 0 and at most 1, not {self.density:g}")
        if self.weights and len(self.weights) != count:
            raise _refuse(f"there are {len(self.weights)} weights for {count} models")
        if not all(map(math.isfinite, self.weights)):
            raise _refuse("the weights are finite numbers")
        equal = 1.0 if self.method.endswith("ties") else 1 / count  # ties divides by the number of changes itself
        return list(self.weights) or [equal] * count


def combine(
    chosen: Sequence[Target],
    out: Path,
    recipe: Recipe,
    base: Target | None,
    home: Home,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> str:
    """Write the combination of `chosen` into the folder `out`, absent or empty; returns its kind, adapter or model.

    `base` is what whole models were made from; only `linear` does without. Raises ProblemError, OSError.
    """
    if len(chosen) < 2:
        raise _refuse("at least two models are needed")
    weights = recipe.resolve(len(chosen))
    _check_empty(out)
    chosen = [targets.fetch(target, home, progress) for target in chosen]
    for target in chosen:
        targets.check(target, folders.find_weights_problems)
    if all(target.adapter for target in chosen):
        if base:
            raise _refuse("--base is for whole models: adapters know theirs")
        _check_adapters(chosen)
        write = _write_adapter
    elif any(target.adapter for target in chosen):
        raise _refuse("some are adapters and some whole models: export the adapters merged first")
    else:
        base = targets.fetch(base, home, progress) if base else None
        for target in [*chosen, *([base] if base else [])]:
            if target.on_hub:
                raise _refuse(f"{target.label} is not on this machine", f"cockpit model pull {target.base}")
        write = _write_model
    out.parent.mkdir(parents=True, exist_ok=True)

    def fill(folder: Path) -> None:
        write(folder, chosen, weights, recipe, base, progress)
        _check_empty(out)  # it would be replaced

    write_folder(out, fill)
    return "adapter" if chosen[0].adapter else "model"


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProblemError(Problem(code="output.not_empty", title=f"{out} is not empty", hint="name another folder"))


def list_last(run: str, count: int, home: Home) -> list[str]:
    """The names of a run's last `count` checkpoints, RUN@STEP. Raises ProblemError."""
    found = targets.find_run(run, home)
    steps = sorted(found.checkpoint_steps()) if found else []
    if found is None or len(steps) < count or count < 2:
        have = f"it has {len(steps)} checkpoints" if found else "there is no such run"
        raise _refuse(f"{run}: at least two checkpoints are averaged, {have}")
    return [f"{found.id}@{step}" for step in steps[-count:]]


def _refuse(why: str, hint: str = "") -> ProblemError:
    return ProblemError(Problem(code="merge.refused", title="These cannot be merged", cause=why, hint=hint))


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_adapters(chosen: Sequence[Target]) -> None:
    """Raises ProblemError for adapters of different bases, and for kinds that peft does not combine."""
    hint = "export each merged into its base, and merge the whole models"
    known, places = set(), []
    for target in chosen:
        assert target.adapter
        config = files.read_json_object(target.adapter / folders.ADAPTER)
        if extras := plain_lora.find_extras(config):
            raise _refuse(f"the adapter {target.label} is no plain LoRA: it is or uses {', '.join(extras)}", hint)
        places.append(
            [sorted(map(str, value)) if isinstance(value := config.get(name), list) else value for name in _PLACES]
        )
        if not targets.have_same_base(target, chosen[0]):
            raise _refuse(f"{target.label} is for the base {target.base}, {chosen[0].label} for {chosen[0].base}", hint)
        recorded = json.loads(target.lock.read_text(encoding="utf-8")) if target.lock else {}
        known.add(recorded.get(BASE_WEIGHT_FILES))
    if len(known - {None}) > 1:
        raise _refuse("their bases had different weights", hint)
    if any(each != places[0] for each in places):
        raise _refuse(f"they differ in {', '.join(_PLACES)}", hint)


def _write_adapter(
    folder: Path,
    chosen: Sequence[Target],
    weights: list[float],
    recipe: Recipe,
    base: Target | None,
    progress: Callable[[str, int, int], None],
) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    first = chosen[0]
    names = [f"m{place}" for place in range(len(chosen))]
    try:
        progress("loading the base", 0, len(chosen))
        scores = folders.is_reward_model(first.folder)
        model = merge.load_base(first, merge.PRISTINE, None, scores, first.trust_remote_code)
        adapted = PeftModel.from_pretrained(model, first.adapter, adapter_name=names[0])
        for place, target in enumerate(chosen[1:], 1):
            progress("loading adapters", place, len(chosen))
            adapted.load_adapter(target.adapter, adapter_name=names[place])
    except (ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise _refuse(first_lines(error), "an adapter has to fit its base: `cockpit model verify FOLDER` checks one")
    torch.manual_seed(recipe.seed)
    same = len({(config.r, str(config.rank_pattern)) for config in adapted.peft_config.values()}) == 1
    kind = "cat" if recipe.method == "linear" else recipe.method if same else f"{recipe.method}_svd"
    sparse = {"density": recipe.density} if recipe.method in _SPARSE else {}
    progress("merging", len(chosen), len(chosen))
    try:
        adapted.add_weighted_adapter(names, weights, _NAME, combination_type=kind, **sparse)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise _refuse(first_lines(error), "they must adapt the same layers")
    config = adapted.peft_config[_NAME]
    config.use_rslora = False
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and _NAME in module.scaling:
            module.scaling[_NAME] = 1.0  # peft combines scaled matrices, so the combination has no scale of its own
            embedded = _NAME in module.lora_embedding_A
            rank = (module.lora_embedding_A[_NAME] if embedded else module.lora_A[_NAME].weight).shape[0]
            if rank != config.r or config.alpha_pattern:
                layer = re.sub(r"^base_model\.model\.", "", name)
                config.rank_pattern[layer] = config.alpha_pattern[layer] = rank
    config.lora_alpha = config.r
    config.base_model_name_or_path = first.base
    adapted.save_pretrained(str(folder), selected_adapters=[_NAME])
    for path in (folder / _NAME).iterdir():
        path.rename(folder / path.name)
    (folder / _NAME).rmdir()
    merge.write_tokenizer(first, folder)
    if first.lock:
        shutil.copyfile(first.lock, folder / "lock.json")


# ── whole models ──────────────────────────────────────────────────────────────────────────────────────────────────


def _write_model(
    folder: Path,
    chosen: Sequence[Target],
    weights: list[float],
    recipe: Recipe,
    base: Target | None,
    progress: Callable[[str, int, int], None],
) -> None:
    """Combine tensor by tensor, in float32, and store each in the first model's dtype."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if recipe.method in _SPARSE and base is None:
        raise _refuse(f"{recipe.method} needs --base: it combines what the models have changed in it")
    if base is None and not math.isclose(sum(weights), 1, abs_tol=1e-3):
        raise _refuse(
            f"the weights of whole models add up to 1, not {sum(weights):g}",
            "name with --base what they were made from: then their changes are weighted",
        )
    sources = [_Weights(Path(target.base), target.label) for target in chosen]
    origin = _Weights(Path(base.base), base.label) if base else None
    for source in [*sources[1:], *([origin] if origin else [])]:
        sources[0].check_same(source)
    torch.manual_seed(recipe.seed)
    shards = sorted(set(sources[0].places.values()))
    for number, shard in enumerate(shards):
        progress("merging", number, len(shards))
        made = {}
        with safe_open(shard, "pt") as file:
            metadata = file.metadata()
        for name in sorted(name for name, place in sources[0].places.items() if place == shard):
            tensors = [source.read(name) for source in sources]
            start = origin.read(name).float() if origin else None
            made[name] = _mix(tensors, weights, recipe, start).to(tensors[0].dtype).contiguous()
        save_file(made, folder / shard.name, metadata=metadata)
    for path in Path(chosen[0].base).iterdir():
        if path.is_file() and path.suffix not in _WEIGHT_FILES and path.name not in ("README.md", manifest.FILE):
            shutil.copyfile(path, folder / path.name)
    merge.write_tokenizer(chosen[0], folder)


def _mix(tensors: list[Any], weights: list[float], recipe: Recipe, start: Any) -> Any:
    import torch
    from peft.utils import merge_utils

    if not tensors[0].is_floating_point():
        return tensors[0]
    if start is None:
        return sum(weight * tensor.float() for weight, tensor in zip(weights, tensors, strict=True))
    changes = [tensor.float() - start for tensor in tensors]
    if recipe.method == "linear":
        return start + sum(weight * change for weight, change in zip(weights, changes, strict=True))
    mixed = getattr(merge_utils, recipe.method)(changes, torch.tensor(weights), density=recipe.density)
    return start + torch.nan_to_num(mixed)


class _Weights:
    """The safetensors of a model folder: name -> file."""

    def __init__(self, folder: Path, label: str) -> None:
        from safetensors import safe_open

        self.label = label
        self.places: dict[str, Path] = {}
        self._shapes: dict[str, Any] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open[path] = file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                self.places[name] = path
                self._shapes[name] = tuple(file.get_slice(name).get_shape())
        if not self.places or "quantization_config" in files.read_json_object(folder / "config.json"):
            raise _refuse(f"{label} has no safetensors, or quantised ones", "export it first")

    def check_same(self, other: _Weights) -> None:
        """Raises ProblemError unless both have tensors of the same names and shapes."""
        if wrong := next(_differences(self._shapes, other._shapes), ""):
            raise _refuse(f"{self.label} and {other.label} are models of different shapes: {wrong}")

    def read(self, name: str) -> Any:
        return self._open[self.places[name]].get_tensor(name)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield f"{name} is {list(one.get(name, ()))} and {list(other.get(name, ()))}"
