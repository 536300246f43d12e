"""What a profile means: one YAML or JSON file that says the whole job.

This module only composes. Each section is declared beside the code that reads it, in a torch-free options model; methods
and adapters come from their tables. Reading reports every problem at once, each with line and column.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from engine.config.bundled import bundled
from engine.config.complaints import explain, suggest
from engine.config.sampling import SamplingOptions
from engine.options.base import Options, Variant
from engine.options.data import DataOptions
from engine.options.evaluation import EvaluationOptions
from engine.options.export import ExportOptions
from engine.options.launch import LaunchOptions
from engine.options.model import ModelOptions
from engine.options.tables import ADAPTERS, METHODS
from engine.options.training import CheckpointOptions, LimitOptions, LoggingOptions, TrainingOptions

SECTIONS: dict[str, type[Options] | dict[str, str]] = {
    "model": ModelOptions,
    "adapter": ADAPTERS,
    "data": DataOptions,
    "method": METHODS,
    "training": TrainingOptions,
    "launch": LaunchOptions,
    "checkpoint": CheckpointOptions,
    "evaluation": EvaluationOptions,
    "logging": LoggingOptions,
    "limits": LimitOptions,
    "generation": SamplingOptions,
    "export": ExportOptions,
}
"""Section -> its model, or the table of kinds that it may be. The first kind of a table is the default."""

CHECKS = (
    "engine.training.checks:combinations",
    "engine.training.online.checks:online",
    "engine.prep.checks:check_sources",
    "engine.prep.checks:check_tokenizer",
    "engine.models.checks:base",
    "engine.export.checks:handing_over",
)
"""What no single section can know. Each `(sections, directory, home) -> [(key, message)]` and copes with missing sections."""


SHELL_CHECKS = ("engine.prep.checks:check_keys",)
"""What a run needs of the shell that submits it. Each `(profile, variables) -> [(key, message)]`."""

NOTES = ("engine.models.checks:family",)
"""What is good to know of a profile that holds. Each `(profile, home) -> [text]`."""

PINS = {"model": "engine.models.checks:pinned", "method": "engine.training.online.checks:pinned"}
"""Section -> what makes it go on meaning what it means now: `(section, directory, home) -> section`."""


@dataclass(frozen=True)
class Issue:
    """One problem of a profile. `line` and `column` count from 1; 0 where the file has no such place (an override)."""

    message: str
    key: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return " ".join(part for part in (place, f"{self.key}: {self.message}" if self.key else self.message) if part)


class ProfileError(ValueError):
    """All that is wrong with a profile, in file order."""

    def __init__(self, issues: list[Issue]) -> None:
        self.issues = sorted(issues, key=lambda issue: (issue.line, issue.column))
        super().__init__("\n".join(map(str, self.issues)))


@dataclass(frozen=True)
class Profile:
    """A profile that holds. `directory` is what relative sources are meant from."""

    model: ModelOptions
    adapter: Variant
    data: DataOptions
    method: Variant
    training: TrainingOptions
    launch: LaunchOptions
    checkpoint: CheckpointOptions
    evaluation: EvaluationOptions
    logging: LoggingOptions
    limits: LimitOptions
    generation: SamplingOptions
    export: ExportOptions
    name: str = ""
    description: str = ""
    directory: Path = field(default_factory=Path.cwd)

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data in the order of the sections."""
        head = {"name": self.name} | ({"description": self.description} if self.description else {})
        return head | {section: getattr(self, section).model_dump() for section in SECTIONS}

    def to_yaml(self) -> str:
        """The frozen form that a run directory keeps."""
        stream = io.StringIO()
        writer = YAML(typ="safe")
        writer.default_flow_style = False
        writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        writer.allow_unicode = True
        writer.dump(self.resolved(), stream)
        return stream.getvalue()


def load(path: Path, overrides: Iterable[str] = (), home: Any = None) -> Profile:
    """Read a profile file. Raises ProfileError with all problems, OSError when the file cannot be read."""
    return parse(path.read_text(encoding="utf-8"), str(path), path.parent, overrides, home)


def find(name: str) -> Path:
    """A profile by path or built-in name. Raises ProfileError naming near misses."""
    path = Path(name)
    if path.is_file():
        return path.absolute()
    builtin = {file.stem: file for file in sorted(bundled("profiles").glob("*.yaml"))}
    if name in builtin:
        return builtin[name]
    raise ProfileError(
        [Issue(f"no such file and no built-in profile{suggest(name, builtin)} (see: cockpit profile list)", file=name)]
    )


def check_shell(profile: Profile, variables: Mapping[str, str]) -> None:
    """Raises ProfileError when a job with these variables of its submitter's shell would lack one."""
    given = {**profile.launch.environment, **variables}
    issues = [
        Issue(message, key=key) for check in SHELL_CHECKS for key, message in load_reference(check)(profile, given)
    ]
    if issues:
        raise ProfileError(issues)


def parse(text: str, file: str, directory: Path, overrides: Iterable[str] = (), home: Any = None) -> Profile:
    """Read a profile from text. `home` (a `Home`) lets checks look for models there. Raises ProfileError with all problems."""
    document, issues = _read_yaml(text, file)
    if document is None:
        raise ProfileError(issues)
    places = _Places(document, file)
    for override in overrides:
        issues += _override(document, override, places)
    sections, found = _read_sections(document)
    for check in CHECKS:
        found += [
            _Found(tuple(key.split(".")), message) for key, message in load_reference(check)(sections, directory, home)
        ]
    issues += [places.issue(each) for each in found]
    if issues:
        raise ProfileError(issues)
    head = {key: document[key] for key in ("name", "description") if key in document}
    return Profile(**sections, **head, directory=directory)


def notes(profile: Profile, home: Any) -> list[str]:
    """What is good to know of a profile that holds, a sentence each."""
    return [text for note in NOTES for text in load_reference(note)(profile, home)]


def pinned(profile: Profile, home: Any) -> Profile:
    """A profile that has just been read, with names that move (`last`, a run that goes on) replaced by what they mean now. Raises ProblemError."""
    sections = {
        name: load_reference(pin)(getattr(profile, name), profile.directory, home) for name, pin in PINS.items()
    }
    return replace(profile, **sections)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Found:
    keys: tuple[str | int, ...]
    message: str


def _read_yaml(text: str, file: str) -> tuple[CommentedMap | None, list[Issue]]:
    try:
        document = YAML(typ="rt").load(text)
    except YAMLError as error:
        return None, [_syntax_error(error, file)]
    if document is None:
        document = CommentedMap()
    if not isinstance(document, CommentedMap):
        return None, [Issue("a profile is a mapping of sections: model, data, training …", file=file, line=1, column=1)]
    return document, []


def _syntax_error(error: YAMLError, file: str) -> Issue:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    said = " ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", "")))) or str(error)
    return Issue(said.splitlines()[0], file=file, line=line, column=column)


def _read_sections(document: CommentedMap) -> tuple[dict[str, Any], list[_Found]]:
    """Each section that holds, and what is wrong with the others."""
    found: list[_Found] = []
    for key in document:
        if key not in SECTIONS and key not in ("name", "description"):
            found.append(_Found((key,), f"unknown section{suggest(str(key), SECTIONS)}"))
    for key in ("name", "description"):
        if not isinstance(document.get(key, ""), str):
            found.append(_Found((key,), "must be text"))
    sections: dict[str, Any] = {}
    for name, owner in SECTIONS.items():
        value = document.get(name)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            found.append(_Found((name,), "must be a mapping"))
            continue
        if isinstance(owner, dict):
            kind = value.get("kind", next(iter(owner)))
            if kind not in owner:
                found.append(
                    _Found(
                        (name, "kind"), f"must be one of {', '.join(owner)}, not {kind!r}{suggest(str(kind), owner)}"
                    )
                )
                continue
            value, owner = {**value, "kind": kind}, load_reference(owner[kind])
        try:
            sections[name] = owner.model_validate(_plain(value))
        except ValidationError as error:
            found += [_Found((name, *keys), message) for keys, message in explain(error, owner)]
    return sections, found


class _Places:
    """Where keys stand in the file. Overridden keys are at no place but their own option."""

    def __init__(self, document: CommentedMap, file: str) -> None:
        self.document, self.file = document, file
        self.overridden: set[tuple[str | int, ...]] = set()

    def issue(self, found: _Found) -> Issue:
        keys: tuple[str | int, ...] = tuple(
            int(key) if isinstance(key, str) and key.isdigit() else key for key in found.keys
        )
        name = ".".join(map(str, keys))
        if keys in self.overridden:
            return Issue(found.message, key=name, file="--set")
        line, column = self._place(keys)
        return Issue(found.message, key=name, file=self.file, line=line, column=column)

    def _place(self, keys: tuple[str | int, ...]) -> tuple[int, int]:
        """Line and column of the key, or of the nearest mapping around it that is in the file."""
        node: Any = self.document
        place = (1, 1)
        for key in keys:
            try:
                if isinstance(node, CommentedMap):
                    line, column = node.lc.key(key)
                elif isinstance(node, CommentedSeq):
                    line, column = node.lc.item(key)
                else:
                    break
                place = (line + 1, column + 1)
                node = node[key]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return place


def _override(document: CommentedMap, override: str, places: _Places) -> list[Issue]:
    """Apply one `a.b=c`; the value is YAML, so `0.1`, `true`, `[1, 2]` and `null` mean what they do in the file."""
    name, equals, value = override.partition("=")
    keys = tuple(int(key) if key.isdigit() else key for key in name.strip().split("."))
    if not equals or not all(str(key) for key in keys):
        return [Issue("write it as section.key=value", key=override, file="--set")]
    try:
        parsed = YAML(typ="safe").load(value)
    except YAMLError as error:
        return [Issue(f"the value is not YAML: {_syntax_error(error, '').message}", key=name, file="--set")]
    node: Any = document
    for key in keys[:-1]:
        if isinstance(node, list):
            if not isinstance(key, int) or key >= len(node):
                return [Issue(f"there is no item {key}", key=name, file="--set")]
        elif not isinstance(node.get(key), (dict, list)):
            node[key] = CommentedMap()
        node = node[key]
    try:
        node[keys[-1]] = parsed
    except (IndexError, TypeError):
        return [Issue(f"there is no item {keys[-1]}", key=name, file="--set")]
    places.overridden.add(keys)
    return []


def _plain(value: Any) -> Any:
    """ruamel's containers and scalars as plain Python ones: strict validation takes nothing else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def load_reference(reference: str) -> Any:
    """What a table's `"module:name"` string names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
