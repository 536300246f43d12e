"""The embedded model and its first layers, loaded once, and adapters that change its replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Any:
    """In float32, where a batch and a single row round alike."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def whole_model(whole_smollm2: Path) -> Any:
    """As `model`, and its replies mean something."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(whole_smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def adapters(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three LoRA adapters with random B: two of one shape, as two checkpoints of a run, and one of another rank."""
    return make_adapters(smollm2, (8, 8, 4), tmp_path_factory)


def make_adapters(base: Path, ranks: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folders = []
    for index, rank in enumerate(ranks):
        torch.manual_seed(index)
        config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        wrapped = get_peft_model(model, config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"adapter-{index}")
        wrapped.save_pretrained(folders[-1])
        model = wrapped.unload()
    return folders
