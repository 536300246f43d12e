"""A run that is only simulated: what its training loop needs, without devices, other processes or files of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.models.devices import Device
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Problem, ProblemError
from engine.training.inbox import Inbox
from engine.training.job import Job
from engine.training.plots import Plots
from engine.training.ranks import Ranks


@dataclass(frozen=True)
class SimulatedDevice(Device):
    """A device of kind `simulates`, whose tensors are on the CPU."""

    simulates: str = "cpu"

    @property
    def kind(self) -> str:
        return self.simulates


class _Silence:
    """A reporter, and its link, that tell nobody anything."""

    phase_name = ""
    blocked = None

    def __init__(self) -> None:
        self.link = self
        self.loggers: list[Any] = []

    def write(self, entry: Any) -> None: ...

    def warn(self, **_: Any) -> None: ...

    def set_phase(self, *_: Any) -> None: ...

    def report_progress(self, **_: Any) -> None: ...

    @contextmanager
    def in_phase(self, *_: Any) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class SimulatedRanks(Ranks):
    """Rank 0 of several, of which there is only this one; the others have what it has."""

    def sum(self, values: Any) -> list[float]:
        return [value * self.world for value in values]

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world


@contextmanager
def process_group(world: int) -> Iterator[Ranks]:
    """Context with the process group of `world` ranks, whose collectives send nothing and return at once."""
    if world == 1:
        yield Ranks()
        return
    import torch.distributed as dist
    from torch.distributed import device_mesh
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the back end
    from torch.utils._python_dispatch import _disable_current_modes

    plain = device_mesh.init_device_mesh

    def make_mesh(*arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():  # it looks at its own ranks
            return plain(*arguments, **named)

    device_mesh.init_device_mesh = make_mesh
    dist.init_process_group("fake", rank=0, world_size=world, store=dist.HashStore())
    try:
        yield SimulatedRanks(0, 0, world)
    finally:
        device_mesh.init_device_mesh = plain
        dist.destroy_process_group()


def make_job(
    profile: Profile, prepared: dict[str, Any], tokenizer: Any, device: Device, ranks: Ranks, folder: Path
) -> Job:
    """The job of a simulated run; `folder` is an empty one for whatever it may write."""
    settings = profile.training.model_copy(update={"compile": False, "liger": False, "workers": 0})
    evaluation = profile.evaluation
    if not prepared.get("validation_rows"):  # there are no conversations yet
        evaluation = evaluation.model_copy(update={"task": None})
    profile = replace(profile, training=settings, evaluation=evaluation)
    silence: Any = _Silence()
    run = RunDirectory(folder)
    return Job(
        run=run,
        attempt=1,
        submitted=profile,
        profile=profile,
        prepared=prepared,
        ranks=ranks,
        device=device,
        reporter=silence,
        inbox=Inbox(),
        tokenizer=tokenizer,
        plots=Plots(run, enabled=False),
        simulated=True,
    )


LARGEST = 1 << 26
"""Tokens that are made up, at most: they take 16 bytes each."""


def write_rows(profile: Profile, folder: Path, world: int = 1) -> dict[str, Any]:
    """The sets of rows of `prepared.json`, made up: all rows are as long as the profile allows, and all their tokens
    are trained. Raises ProblemError for more than `LARGEST`."""
    from datasets import Dataset

    rows = profile.training.rows
    if budget := profile.training.tokens_per_batch:
        rows = max(1, -(-budget // profile.data.max_length))
    # Two micro-batches for each rank, as held-out rows are divided; further ones are not traced, and may be many.
    count = max(2 * rows * world, 4)
    if (tokens := count * profile.data.max_length) > LARGEST:
        raise ProblemError(
            Problem(
                code="forecast.unsupported",
                title="There is no forecast for this profile",
                cause=f"{count} rows of data.max_length {profile.data.max_length} have {tokens:.1e} tokens, too "
                "many to make up before the rows are prepared",
                hint="lower data.max_length or training.micro_batch, or prepare the rows",
            )
        )
    row = make_row(profile)
    parts: dict[str, Any] = {}
    held_out = bool(profile.data.validation or profile.data.split)
    for part in ("train", "validation") if held_out else ("train",):
        Dataset.from_list([row] * count).save_to_disk(str(folder / part))
        parts[part] = str(folder / part)
    return {"validation": None, "validation_rows": None, "trained_tokens": 0, "hash": "", **parts}


def make_row(profile: Profile) -> dict[str, Any]:
    """The longest row that the profile allows."""
    length = profile.data.max_length
    kind = profile.method.rows  # type: ignore[attr-defined]
    if kind == "tokens":
        return {"input_ids": [0] * length, "labels": [0] * length}
    longest = getattr(profile.method, "max_prompt", None) or length // 2
    prompt = min(longest, length - 1)
    reply = [0] * (length - prompt)
    if kind == "prompts":
        room = length - profile.method.max_new_tokens  # type: ignore[attr-defined]
        message = json.dumps({"messages": [{"role": "user", "content": ""}]})
        return {"prompt_ids": [0] * max(1, room), "prompt": message, "reference": ""}
    if kind == "judged":
        return {"prompt_ids": [0] * prompt, "completion_ids": reply, "label": [1]}
    return {"prompt_ids": [0] * prompt, "chosen_ids": reply, "rejected_ids": reply}
