"""Checks of online methods: the reward exists, and the sampled replies fit. Reads names and small files; loads no
model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.models import folders, targets
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.tasks import TASKS
from engine.tasks.task import load_task
from engine.training.online.options import OnlineOptions, RewardOptions


def check_online(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for settings that an online method cannot work with. Other methods pass."""
    method = sections.get("method")
    if not isinstance(method, OnlineOptions):
        return
    yield from _check_task(method.reward)
    if training := sections.get("training"):
        share = training.rows * training.accumulation
        if share % method.generations:
            yield (
                "training.micro_batch",
                f"times training.accumulation is {share}, and must be a multiple of method.generations "
                f"({method.generations}): they count replies, and all replies to a prompt belong to one step",
            )
    data = sections.get("data")
    if data and method.max_new_tokens >= data.max_length:
        yield (
            "method.max_new_tokens",
            f"leaves no room for a prompt: it must be below data.max_length ({data.max_length}), the limit of prompt "
            "and reply together",
        )


def _check_task(reward: RewardOptions) -> Iterator[tuple[str, str]]:
    if reward.task is None:
        return
    if reward.task not in TASKS:
        yield "method.reward.task", f"must be one of {', '.join(TASKS)}, not {reward.task!r}"
    elif reward.metric not in (known := load_task(reward.task).directions):
        yield "method.reward.metric", f"must be one of {', '.join(known)}, not {reward.metric!r}"


def check_reward_model(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` when an online method names a reward model that this host has not."""
    method = sections.get("method")
    if not isinstance(method, OnlineOptions) or method.reward.task is not None:
        return
    try:
        resolve_reward_model(method.reward, directory, home or Home.locate())
    except ProblemError as error:
        problem = error.problem
        yield "method.reward.run", ": ".join(part for part in (problem.title, problem.cause) if part)


def resolve_reward_model(reward: RewardOptions, directory: Path, home: Home) -> Target:
    """The reward model that `reward.run` names. Raises ProblemError when it names none."""
    assert reward.run is not None
    target = targets.resolve(reward.run, home, directory)
    if target.on_hub:
        raise ProblemError(
            Problem(
                code="model.not_pulled",
                title=f"{reward.run} is not on this machine",
                hint=f"cockpit model pull {reward.run}, then name its folder",
            )
        )
    if not folders.is_reward_model(target.folder):
        raise ProblemError(
            Problem(
                code="model.not_reward",
                title=f"{reward.run} is no reward model",
                cause="it generates text instead of a score; name a run of method.kind reward",
            )
        )
    targets.check(target)
    return target


def describe_reward_model(method: Any, directory: Path, home: Home) -> dict[str, Any]:
    """The entry `reward` of prepared.json for a reward model; empty without one. Raises ProblemError."""
    if not isinstance(method, OnlineOptions) or method.reward.run is None:
        return {}
    target = resolve_reward_model(method.reward, directory, home)
    where = target.folder if folders.has_tokenizer(target.folder) else Path(target.base)
    return {
        "reward": {
            "label": target.label,
            "base": target.base,
            "adapter": str(target.adapter) if target.adapter else None,
            "tokenizer": str(where),
            "dtype": target.dtype or "float32",
            "quantization": target.quantization or "none",
        }
    }


def pin_reward(method: Any, directory: Path, home: Home) -> Any:
    """`method` with its reward model pinned: a run is replaced by its current checkpoint's step. Raises
    ProblemError."""
    if not isinstance(method, OnlineOptions) or method.reward.run is None:
        return method
    target = resolve_reward_model(method.reward, directory, home)
    if target.run is None:
        return method
    return method.model_copy(update={"reward": RewardOptions(run=target.label)})
