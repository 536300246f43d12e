"""Bases whose weights compressed-tensors packs: made, answered with and trained, beside their unpacked twins.

`python -m tests.models.compressed FOLDER` prints what was found, as JSON. It runs as a process of its own, in which the
library can be imported; it may be installed apart from what other tests import.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.protocol.home import Home
from tests.training.harness import make_model, prepare
from tests.training.in_process import series, train

KINDS: dict[str, dict[str, Any]] = {
    "w4a16": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "w8a16": {"num_bits": 8, "strategy": "channel"},
}
STEPS = ("training.max_steps=3", "checkpoint.every_steps=3")


def main() -> None:
    folder = Path(sys.argv[1])
    plain = make_model(folder / "plain")
    found = {}
    for kind, arguments in KINDS.items():
        packed, twin = pack(plain, folder / kind, arguments)
        config = json.loads((packed / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        found[kind] = {
            "method": config["quant_method"],
            "format": config["format"],
            "packed": try_out(packed, folder / "packed" / kind),
            "twin": try_out(twin, folder / "twin" / kind),
            "plain": answer(plain, folder / "home")["logits"],
        }
    print(json.dumps(found))


def pack(plain: Path, folder: Path, arguments: dict[str, Any]) -> tuple[Path, Path]:
    """The model `plain` with its layers rounded and packed, and with the same numbers unpacked.

    The twin's numbers are computed here by the definition: an integer times the scale of its group.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, twin = AutoModelForCausalLM.from_pretrained(plain), AutoModelForCausalLM.from_pretrained(plain)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(type="int", symmetric=True, **arguments))
    frozen = QuantizationStatus.FROZEN
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"], quantization_status=frozen)
    )
    most = 2 ** (arguments["num_bits"] - 1)
    for name, module in model.named_modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        groups = module.weight.data.unflatten(1, (-1, arguments.get("group_size", module.in_features)))
        scale = groups.abs().amax(-1) / (most - 1)
        module.weight_scale.data.copy_(scale)
        rounded = (groups / scale[..., None]).round().clamp(-most, most - 1) * scale[..., None]
        twin.get_submodule(name).weight.data.copy_(rounded.flatten(1))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    unpacked = folder.with_name(f"{folder.name}-unpacked")
    twin.save_pretrained(unpacked)
    for each in (folder, unpacked):
        AutoTokenizer.from_pretrained(plain).save_pretrained(each)
    return folder, unpacked


def try_out(base: Path, folder: Path) -> dict[str, Any]:
    """What a base answers, what a LoRA on it loses, and what its checkpoint answers."""
    from transformers import AutoTokenizer

    from engine.models.template_lock import hash_template

    home = Home(folder / "home").create()
    prepared = prepare(folder / "prepared", base)
    prepared["lock"]["template_sha256"] = hash_template(AutoTokenizer.from_pretrained(base))
    run = train(home, "run", prepared, *STEPS)
    losses = [series(run, "train/loss")[step] for step in (1, 2, 3)]
    return {"base": answer(base, home.root), "losses": losses, "trained": answer(run.checkpoint(3), home.root)}


def answer(target: Path, home: Path) -> dict[str, Any]:
    """The logits of a few tokens, and a reply, as chat computes them."""
    import torch

    from engine.inference.loaded_model import load
    from engine.inference.sampling import Sampling

    loaded = load(str(target), home=Home(home), device="cpu")
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.arange(4, 12)[None]).logits[0]
    return {"logits": logits.tolist(), "reply": loaded.chat("w1 w2 w3", Sampling(8)).ids}


if __name__ == "__main__":
    main()
