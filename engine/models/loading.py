"""The one place from which a causal language model is loaded: transformers' own way, or that of a family which it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models import folders
from engine.models.glm.generations import Unsupported, recognise
from engine.protocol.messages import Problem, ProblemError


def pretrained(name: str, **arguments: Any) -> Any:
    """The model of a folder or hub id; `arguments` as for `AutoModelForCausalLM.from_pretrained`.

    GLM folders in their original layout are known by their config.json, and never run the code that lies in them, whatever
    `trust_remote_code` says. Raises ProblemError for one that cannot be loaded exactly, and what transformers raises.
    """
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    told, _ = PreTrainedConfig.get_config_dict(name)
    try:
        generation = recognise(told)
    except Unsupported as error:
        raise _cannot(name, str(error))
    if generation is None:
        return AutoModelForCausalLM.from_pretrained(name, **arguments)
    # transformers would fill what is missing with random numbers, and speak of it in terms of its own names.
    if Path(name).is_dir() and (wrong := folders.weights_problems(Path(name))):
        raise _cannot(name, "; ".join(wrong))
    arguments.pop("trust_remote_code", None)
    if generation.number == 1:
        from engine.models.glm import first

        return first.load(name, generation, arguments)
    from engine.models.glm import converted

    return converted.load(name, generation, arguments)


def _cannot(name: str, cause: str) -> ProblemError:
    return ProblemError(
        Problem(title=f"{name} cannot be loaded", cause=cause, hint="`cockpit model verify` looks a folder over")
    )
