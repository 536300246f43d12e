"""Resolves a TARGET of the command line or `model.base`, by names and small files. Loads no weights.

A target is a run id, a prefix of one, or `last` (its best checkpoint, else its newest); RUN@STEP; a checkpoint, adapter
or model folder, or a GGUF file; a catalogue name; a folder's name in COCKPIT_HOME/models; or a hub id (`org/name`,
`hf://org/name`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.models import base_weights, files, folders, gguf, limits
from engine.models.catalogue import CATALOGUE, pull
from engine.models.embedded import Progress
from engine.models.weights import DamagedFile
from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError

HUB = "hf://"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Target:
    """What to load. `dtype` and `quantization` are those that it was trained with; None where they are not recorded."""

    base: str
    """Absolute folder, or a hub id (`org/name`). A catalogue model's folder may not be there yet: see `fetch`."""
    label: str
    """Short name for display: `run@step`, or the folder's name."""
    adapter: Path | None = None
    run: str | None = None
    step: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    quantize_experts: bool = False
    """Whether its fused experts were trained on in 4 bits, too."""
    lock: Path | None = None
    """`lock.json` of the checkpoint: template, stop tokens, golden token ids."""
    catalogue: str | None = None
    """The catalogue name behind `base`, when there is one."""
    gguf: Path | None = None
    """The file that `fetch` makes `base` from."""
    trust_remote_code: bool = False
    """Whether the profile of its run, which the user wrote, allows the code in the base's folder to run."""

    @property
    def on_hub(self) -> bool:
        return not Path(self.base).is_absolute()

    @property
    def folder(self) -> Path:
        """The folder of the weights that this target is about: the adapter's, else the base's."""
        return self.adapter or Path(self.base)


def resolve(target: str, home: Home, directory: Path) -> Target:
    """Find what `target` names. Relative folders are resolved against `directory`. Raises ProblemError."""
    name = target.strip()
    if name.startswith(HUB):
        return Target(base=name.removeprefix(HUB), label=name.removeprefix(HUB))
    run, at, step = name.rpartition("@")
    if at and step.isdecimal() and (found := find_run(run, home)):
        return _resolve_run(found, int(step))
    if name == "last" or (_is_word(name) and home.run(name).profile.is_file()):
        return _resolve_run(find_run(name, home), None)
    folder = (directory / Path(name).expanduser()).absolute()
    if name and folder.is_dir():
        return _resolve_folder(folder, home)
    if name and folder.suffix == gguf.SUFFIX and folder.is_file():
        return _resolve_gguf(folder, home)
    if name in CATALOGUE:
        return Target(base=str(home.models / name), label=name, catalogue=name)
    if _is_word(name) and (home.models / name).is_dir():
        return _resolve_folder(home.models / name, home)
    if found := find_run(name, home):
        return _resolve_run(found, None)
    if _HUB_ID.fullmatch(name):
        return Target(base=name, label=name)
    raise ProblemError(
        Problem(
            code="model.not_found",
            title=f"There is no model {target!r}",
            cause=(
                f"it is not a run, a folder in {directory}, a catalogue name ({', '.join(CATALOGUE)}) "
                "or a hub id (org/name)"
            ),
            hint="`cockpit runs` lists runs, `cockpit model find` lists models on this machine",
        )
    )


def have_same_base(one: Target, other: Target) -> bool:
    """Whether two targets name the same base, be it by a link to its folder."""
    if one.on_hub or other.on_hub:
        return one.base == other.base
    return Path(one.base).resolve() == Path(other.base).resolve()


def fetch(target: Target, home: Home, progress: Progress) -> Target:
    """Fetch a catalogue base, or convert a GGUF file; any other target is returned as it is. Raises ProblemError."""
    if target.gguf is not None:
        gguf.unpack(target.gguf, Path(target.base), progress)
    if target.catalogue is None:
        return target
    return replace(target, base=str(pull(target.catalogue, home, progress)))


def check(target: Target, look: Callable[[Path], list[str]] = folders.find_problems) -> None:
    """Raises ProblemError when `look` finds a problem in a folder that the target needs, and when an adapter's base has
    changed since. Folders still to be fetched pass."""
    for folder in (target.adapter, None if target.on_hub else Path(target.base)):
        if folder is None or ((target.catalogue or target.gguf) and not folder.exists()):
            continue
        found = look(folder)
        if found:
            raise ProblemError(
                Problem(
                    code="model.unloadable",
                    title=f"{folder} cannot be loaded",
                    cause="; ".join(found),
                    hint=_suggest_other(target, folder, look)
                    or f"`cockpit model verify {folder}` checks the folder again when it is repaired",
                )
            )
    if target.adapter and target.lock and not target.on_hub:
        recorded = read_lock(target.lock).get(base_weights.KEY)
        if base_weights.has_changed(recorded, Path(target.base)):
            raise ProblemError(base_weights.explain(target.label, target.base))


def _suggest_other(target: Target, folder: Path, look: Callable[[Path], list[str]]) -> str:
    """The run's newest checkpoint that is whole, when `folder` is another one's; else empty."""
    if target.run is None or target.folder != folder:
        return ""
    run = RunDirectory(folder.parent.parent)
    for step in reversed(run.checkpoint_steps()):
        if step != target.step and not look(run.checkpoint(step)):
            return f"{run.id}@{step} is whole: name that checkpoint"
    return ""


def check_chats(target: Target) -> None:
    """Raises ProblemError for a model that generates no replies here: a reward model, or a recurrent one."""
    check_is_language_model(target)
    if not target.on_hub and limits.is_recurrent(Path(target.base)):
        raise ProblemError(
            Problem(
                code="model.recurrent",
                title=f"{target.label} cannot chat here",
                cause="it is a recurrent model: it keeps a state of its own kind instead of keys and values, and "
                "replies are generated from those",
                hint="generate with transformers' own `generate`, which loads the folder as it is, or name a model "
                "with attention",
            )
        )


def check_is_language_model(target: Target) -> None:
    """Raises ProblemError for a reward model, which generates no text."""
    for folder in (target.adapter, None if target.on_hub else Path(target.base)):
        if folder is not None and folders.is_reward_model(folder):
            raise ProblemError(
                Problem(
                    code="model.is_reward",
                    title=f"{folder} is a reward model: it scores replies and generates none",
                    cause="its output is one number, where a language model has its vocabulary",
                    hint="name the model that it was trained from, or a run of method.kind sft, dpo, kto or orpo",
                )
            )


# ── runs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_word(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]*\w[\w.-]*", name))


def find_run(name: str, home: Home) -> RunDirectory | None:
    """Find a run by its id, by a prefix that no other run has, or `last` for the newest. Raises ProblemError when
    several match."""
    runs = [home.run(path.parent.name) for path in home.runs.glob("*/profile.yaml")] if _is_word(name) else []
    if name == "last":
        if not runs:
            raise ProblemError(
                Problem(
                    code="run.none",
                    title="There is no run yet",
                    hint="`cockpit demo` starts one, `cockpit train PROFILE` yours",
                )
            )
        return max(runs, key=_read_creation_time)
    matches = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    if len(matches) > 1:
        raise ProblemError(
            Problem(
                code="run.ambiguous",
                title=f"{name!r} matches {len(matches)} runs",
                cause=", ".join(sorted(run.id for run in matches)),
                hint="use a longer prefix",
            )
        )
    return matches[0] if matches else None


def _read_creation_time(run: RunDirectory) -> float:
    try:
        return float(json.loads((run.path / "job.json").read_text())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return run.profile.stat().st_mtime


def _resolve_run(run: RunDirectory | None, step: int | None) -> Target:
    assert run is not None
    steps = run.checkpoint_steps()
    if not steps:
        raise ProblemError(
            Problem(
                code="checkpoint.none",
                title=f"Run {run.id} has no checkpoint yet",
                hint=(
                    f"`cockpit show {run.id}` shows its progress; checkpoint.every_steps "
                    "in its profile sets when it saves"
                ),
            )
        )
    if step is not None and step not in steps:
        raise ProblemError(
            Problem(
                code="checkpoint.not_found",
                title=f"Run {run.id} has no checkpoint at step {step}",
                cause=f"it has {', '.join(map(str, steps))}; checkpoint.keep removes older ones",
            )
        )
    chosen = step if step is not None else _find_best(run, steps)
    found = _resolve_folder(run.checkpoint(chosen), Home(run.path.parent.parent))
    label = f"{run.id}@{chosen}"
    return replace(found, run=run.id, step=chosen, label=label, trust_remote_code=_trusts_remote_code(run))


def _trusts_remote_code(run: RunDirectory) -> bool:
    """The setting in the run's frozen profile. The checkpoint's own files do not count: they may come from
    elsewhere."""
    text = run.profile.read_text(encoding="utf-8")
    if "trust_remote_code" not in text:
        return False
    from ruamel.yaml import YAML

    model = YAML(typ="safe").load(text).get("model", {})
    return model.get("trust_remote_code") is True


def _find_best(run: RunDirectory, steps: list[int]) -> int:
    """The latest checkpoint that was marked as best and still exists, else the newest."""
    best = steps[-1]
    for line, _ in journal.read_lines(run.events):
        if b'"checkpoint"' in line:  # most lines are metrics: decoding them all would take seconds for a long run
            entry = journal.decode(line)
            if isinstance(entry, journal.Checkpoint) and entry.best and entry.step in steps:
                best = entry.step
    return best


# ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _resolve_folder(folder: Path, home: Home) -> Target:
    lock = folder / "lock.json"
    recorded: dict[str, Any] = _read(lock) if lock.is_file() else {}
    found = Target(
        base=str(folder),
        label=folder.name,
        dtype=recorded.get("dtype"),
        quantization=recorded.get("quantization"),
        quantize_experts=recorded.get("quantize_experts") is True,
        lock=lock if recorded else None,
    )
    match folders.detect_kind(folder):
        case "model":
            return found
        case "adapter":
            named = recorded.get("base") or _read(folder / folders.ADAPTER).get("base_model_name_or_path") or ""
            if not isinstance(named, str) or "\0" in named:
                named = ""
            base = _resolve_base(folder, named, home)
            return replace(found, base=base.base, catalogue=base.catalogue, adapter=folder)
    files = sorted(folder.glob(f"*{gguf.SUFFIX}"))
    if len(files) == 1:
        return _resolve_gguf(files[0], home)
    raise ProblemError(
        Problem(
            code="model.ambiguous" if files else "model.not_found",
            title=f"{folder} is not a model folder",
            cause=f"it has {len(files)} GGUF files: name one of them"
            if files
            else "it has neither config.json nor adapter_config.json",
            hint="name the folder that holds the weights; `cockpit model find FOLDER` searches the folders below one",
        )
    )


def _resolve_gguf(file: Path, home: Home) -> Target:
    return Target(base=str(gguf.choose_folder(file, home)), label=file.stem, gguf=file)


def _resolve_base(adapter: Path, named: str, home: Home) -> Target:
    """The base that the adapter was trained on. A catalogue model or a copied one is found even when the home has
    moved."""
    for place in (Path(named), home.models / Path(named).name, home.cache / Path(named).name):
        if named and place.is_absolute() and folders.detect_kind(place) == "model":
            catalogue = place.name if place.parent == home.models and place.name in CATALOGUE else None
            return Target(base=str(place), label=place.name, catalogue=catalogue)
    if Path(named).name in CATALOGUE:
        return resolve(Path(named).name, home, home.models)
    if _HUB_ID.fullmatch(named):
        return Target(base=named, label=named)
    raise ProblemError(
        Problem(
            code="model.base_missing",
            title=f"The base model of the adapter in {adapter} is missing",
            cause=f"it was trained on {named or 'a model that it does not name'}",
            hint=f"copy that folder to {home.models}, with the name {Path(named).name or 'of the base'}",
        )
    )


def read_lock(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's lock.json. Raises ProblemError."""
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except DamagedFile as error:
        raise ProblemError(Problem(code="model.unloadable", title=f"{path.parent} is damaged", cause=str(error)))
    return content if isinstance(content, dict) else {}
