"""Loads base models: with transformers, or with our own code for families that it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models import accelerator, bitsandbytes_import, folders, stored_quantization
from engine.models.glm.generations import Generation, Unsupported, recognise
from engine.protocol.messages import Problem, ProblemError


def load_model(name: str, **arguments: Any) -> Any:
    """The model of a folder or hub id; `arguments` as for `AutoModelForCausalLM.from_pretrained`.

    GLM folders in their original layout are recognised by their config.json. The code in them is never run, whatever
    `trust_remote_code` says. Raises ProblemError when the model cannot be loaded exactly, and transformers' errors.
    """
    from transformers import AutoModelForCausalLM

    if problem := stored_quantization.find_problem(Path(name)):
        raise ProblemError(problem)
    accelerator.set_up_torch()
    bitsandbytes_import.import_lightly()
    generation = read_generation(name)
    if generation is None:
        with stored_quantization.reading(Path(name), arguments) as given:
            return AutoModelForCausalLM.from_pretrained(name, **given)
    # transformers would fill missing weights with random numbers, and report them by its own names.
    if Path(name).is_dir() and (wrong := folders.find_weights_problems(Path(name))):
        raise _load_error(name, "; ".join(wrong))
    arguments.pop("trust_remote_code", None)
    if generation.number == 1:
        from engine.models.glm import chatglm_first

        return chatglm_first.load(name, generation, arguments)
    try:
        from engine.models.glm import load_glm
    except ImportError as error:
        raise ProblemError(
            Problem(
                code="package.too_old",
                title=f"The installed transformers cannot load {generation.name} in its original layout",
                cause=str(error),
                hint="pip install 'transformers>=5.23'",
            )
        ) from None
    return load_glm.load(name, generation, arguments)


def load_reward_model(name: str, **arguments: Any) -> Any:
    """The same model with one number as its output instead of a vocabulary; that layer is random where the folder has
    none. Raises ProblemError for GLM folders in their original layout, and for heads of several numbers."""
    from transformers import AutoModelForSequenceClassification

    if problem := stored_quantization.find_problem(Path(name)):
        raise ProblemError(problem)
    accelerator.set_up_torch()
    bitsandbytes_import.import_lightly()
    generation = read_generation(name)
    if generation is not None:
        raise ProblemError(
            Problem(
                code="model.no_reward_head",
                title=f"{name} cannot become a reward model",
                cause=f"{generation.name} in its original layout can only be loaded as a language model",
                hint=(
                    "ChatGLM2, ChatGLM3 and GLM-4: name a run on it with adapter.kind none, "
                    "which is saved as transformers' own"
                )
                if generation.number > 1
                else "name a base of another family",
            )
        )
    if (labels := _count_labels(name)) not in (None, 1):
        raise ProblemError(
            Problem(
                code="model.no_reward_head",
                title=f"{name} cannot become a reward model",
                cause=f"its head gives {labels} numbers for a text instead of one",
                hint="name a language model, whose head is made anew, or a model with one label",
            )
        )
    with stored_quantization.reading(Path(name), arguments) as given:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **given)


def read_generation(name: str) -> Generation | None:
    """Raises ProblemError for a GLM that cannot be loaded exactly."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(name)
    try:
        return recognise(config)
    except Unsupported as error:
        raise _load_error(name, str(error))


def _count_labels(name: str) -> int | None:
    """How many numbers the head of a stored classifier gives; None for other models."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(name)
    if not any("SequenceClassification" in str(each) for each in config.get("architectures") or ()):
        return None
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels") or 2)


def _load_error(name: str, cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="model.unloadable",
            title=f"{name} cannot be loaded",
            cause=cause,
            hint="check the folder with `cockpit model verify`",
        )
    )
