"""Reads a profile: the one YAML or JSON file that describes a whole job.

This module only composes. Each section is declared beside the code that reads it, in a torch-free options model;
methods and adapters come from their tables. All problems are reported at once, each with line and column.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from engine.config import yaml_text
from engine.config.bundled import find_bundled
from engine.config.complaints import explain, show_value
from engine.config.issues import Found, Issue, Places
from engine.config.overrides import (
    DEEPEST,
    apply_overrides,
    join_surrogates,
    load_reference,
    measure,
    to_plain,
)
from engine.config.sampling import SamplingOptions
from engine.options.base import Options, Variant
from engine.options.data import DataOptions
from engine.options.evaluation import EvaluationOptions
from engine.options.export import ExportOptions
from engine.options.launch import LaunchOptions
from engine.options.model import ModelOptions
from engine.options.tables import ADAPTERS, METHODS
from engine.options.training import CheckpointOptions, LimitOptions, LoggingOptions, TrainingOptions
from engine.protocol.text import did_you_mean

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
"""Section -> its options model, or a table of kinds. The first kind of a table is the default."""

CHECKS = (
    "engine.options.launch_checks:check_launch",
    "engine.training.checks:check_combinations",
    "engine.training.parallel.deepspeed_config:check_deepspeed",
    "engine.training.parallel.deepspeed_config:check_host",
    "engine.training.online.checks:check_online",
    "engine.training.online.checks:check_reward_model",
    "engine.prep.checks:check_sources",
    "engine.prep.checks:check_tokenizer",
    "engine.models.checks:check_base",
    "engine.metrics.checks:metric_names",
    "engine.evaluation.checks:check_benchmarks",
    "engine.export.checks:check_export",
)
"""Checks across sections. Each is `(sections, directory, home) -> [(key, message)]`, and accepts missing sections."""


DOUBTS = ("engine.training.doubts:check_doubts", "engine.models.checks:doubt_experts")
"""The same for a valid profile: what the run will hardly do as it is set. Nothing is refused because of these."""
OF_HOST = (
    "engine.training.parallel.deepspeed_config:check_host",
    "engine.training.online.checks:check_reward_model",
    "engine.prep.checks:check_sources",
    "engine.prep.checks:check_tokenizer",
    "engine.models.checks:check_base",
)
"""Those among them that are about files of the host."""
FOR_FORECAST = {"engine.models.checks:check_base": "engine.models.checks:check_shape"}
"""A check -> the one that takes its place for a forecast."""
OF_SOURCES = ("engine.prep.checks:check_sources",)
"""Those among them that are only about the files that rows are prepared from."""

SHELL_CHECKS = ("engine.prep.checks:check_keys",)
"""Checks of the environment variables that a run needs. Each is `(profile, variables) -> [(key, message)]`."""

ROW_CHECKS = ("engine.prep.first_rows:check_first_rows",)
"""Checks that read the first rows of the sources. Each is `(profile) -> [(key, message)]`."""

NOTES = ("engine.models.checks:describe_family", "engine.llm_api.checks:describe_services")
"""Remarks about a valid profile. Each is `(profile, home) -> [text]`."""

LARGEST = 100_000
"""Most values in a profile."""

PINS = {
    "model": "engine.models.checks:pin_base",
    "method": "engine.training.online.checks:pin_reward",
    "launch": "engine.training.parallel.deepspeed_config:pin_config",
}
"""Section -> a function that replaces names whose meaning may change: `(section, directory, home) -> section`."""


class ProfileError(ValueError):
    """All problems of a profile, in the order of the file."""

    def __init__(self, issues: list[Issue], *, code: str = "profile.invalid") -> None:
        self.code = code
        self.issues = sorted(issues, key=lambda issue: (issue.line, issue.column))
        super().__init__("\n".join(map(str, self.issues)))


@dataclass(frozen=True)
class Profile:
    """A valid profile. Relative sources are resolved against `directory`."""

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
    remarks: tuple[str, ...] = field(default=(), compare=False)
    """Sentences for the user about what overrides have changed besides what they name."""
    doubts: tuple[Issue, ...] = field(default=(), compare=False)
    """Settings with which the run will hardly do what they say."""

    def to_dict(self) -> dict[str, Any]:
        """All settings, including defaults, as plain data in the order of the sections."""
        head = {"name": self.name} | ({"description": self.description} if self.description else {})
        return head | {section: getattr(self, section).model_dump() for section in SECTIONS}

    def to_yaml(self) -> str:
        """The profile as YAML, as it is stored in the run's directory."""
        stream = io.StringIO()
        writer = YAML(typ="safe")
        writer.default_flow_style = False
        writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        writer.allow_unicode = True
        writer.dump(self.to_dict(), stream)
        return stream.getvalue()


def load(
    path: Path, overrides: Iterable[str] = (), home: Any = None, *, rows: bool = False, forecast: bool = False
) -> Profile:
    """Read a profile file, as `parse` does. Raises ProfileError with all problems, OSError when it cannot be read."""
    try:
        text = read_text(path)
    except YAMLError as error:
        raise ProfileError([_describe_syntax_error(error, str(path), "")]) from None
    return parse(text, str(path), path.parent, overrides, home, rows=rows, forecast=forecast)


def read_text(path: Path) -> str:
    """The text of a profile file. Raises ProfileError, with the line, when it is not UTF-8; YAMLError for a file that
    is too long; OSError."""
    content = yaml_text.read_bytes(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line_start = before.rfind(b"\n") + 1
        line, column = before.count(b"\n") + 1, len(before[line_start:].decode("utf-8")) + 1
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8: save the file in the encoding UTF-8"
        raise ProfileError([Issue(message, code="profile.syntax", file=str(path), line=line, column=column)]) from None


def find(name: str) -> Path:
    """The file of a profile, by its path or built-in name. Raises ProfileError, which suggests a similar name."""
    path = Path(name)
    if path.is_file():
        return path.absolute()
    builtin = {file.stem: file for file in sorted(find_bundled("profiles").glob("*.yaml"))}
    if name in builtin:
        return builtin[name]
    message = f"no such file and no built-in profile{did_you_mean(name, builtin)} (see: cockpit profile list)"
    raise ProfileError([Issue(message, code="profile.not_found", file=name)], code="profile.not_found")


def check_shell(profile: Profile, variables: Mapping[str, str]) -> None:
    """Raises ProfileError when the job would lack a variable; `variables` are those of the submitting shell."""
    given = {**profile.launch.environment, **variables}
    issues = [
        Issue(message, code="profile.environment", key=key)
        for check in SHELL_CHECKS
        for key, message in load_reference(check)(profile, given)
    ]
    if issues:
        raise ProfileError(issues, code="profile.environment")


def parse(
    text: str,
    file: str,
    directory: Path,
    overrides: Iterable[str] = (),
    home: Any = None,
    *,
    prepared: bool = False,
    elsewhere: bool = False,
    rows: bool = False,
    forecast: bool = False,
) -> Profile:
    """Read a profile from text. `home` (a `Home`) lets checks look for models there. With `prepared` its rows are
    prepared, so their sources need not exist any more; with `elsewhere` it is for another host, whose files are not
    here; with `rows` it is to be launched, and the first rows of its sources are looked at too; with `forecast`
    nothing is computed with it, so its base needs no weights. Raises ProfileError with all problems."""
    document, issues = _read_yaml(text, file)
    if document is None:
        raise ProfileError(issues)
    applied = apply_overrides(document, overrides, SECTIONS)
    issues += [Issue(message, code="profile.override", key=key, file="--set") for key, message in applied.refused]
    places = Places(document, file, applied.places)
    sections, found = _read_sections(document)
    for check in CHECKS:
        if (prepared and check in OF_SOURCES) or (elsewhere and check in OF_HOST):
            continue
        found += [
            Found(tuple(key.split(".")), message, code="profile.conflict")
            for key, message in load_reference(FOR_FORECAST.get(check, check) if forecast else check)(
                sections, directory, home
            )
        ]
    issues += [places.issue(each) for each in found]
    if issues:
        raise ProfileError(issues)
    head = {key: document[key] for key in ("name", "description") if key in document}
    doubts = tuple(
        places.issue(Found(tuple(key.split(".")), message, code="profile.doubtful"))
        for check in (() if elsewhere else DOUBTS)
        for key, message in load_reference(check)(sections, directory, home)
    )
    profile = Profile(**sections, **head, directory=directory, remarks=tuple(applied.remarks), doubts=doubts)
    of_rows = (
        [found for check in ROW_CHECKS for found in load_reference(check)(profile)] if rows and not elsewhere else []
    )
    if of_rows:
        found = [Found(tuple(key.split(".")), message, code="profile.rows") for key, message in of_rows]
        raise ProfileError([places.issue(each) for each in found], code="profile.rows")
    return profile


def list_notes(profile: Profile, home: Any) -> list[str]:
    """Remarks about a valid profile, one sentence each."""
    return [
        *profile.remarks,
        *map(str, profile.doubts),
        *(text for note in NOTES for text in load_reference(note)(profile, home)),
    ]


def pin(profile: Profile, home: Any) -> Profile:
    """Replace names whose meaning may change (`last`, a run that goes on) by what they mean now. Raises
    ProblemError."""
    sections = {name: load_reference(PINS[name])(getattr(profile, name), profile.directory, home) for name in PINS}
    return replace(profile, **sections)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_yaml(text: str, file: str) -> tuple[CommentedMap | None, list[Issue]]:
    try:
        yaml_text.check(text)
        document = YAML(typ="rt").load(text)
    except YAMLError as error:
        return None, [_describe_syntax_error(error, file, text)]
    except RecursionError:
        return _refuse("nested too deeply", file)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # ruamel's own errors for values that are no valid date, number or tag carry no place
        return _refuse(f"not YAML: {error}", file)
    if document is None:
        document = CommentedMap()
    if not isinstance(document, CommentedMap):
        return _refuse("a profile is a mapping of sections: model, data, training …", file)
    depth, size = measure(document)
    if depth > DEEPEST or size > LARGEST:
        return _refuse("nested too deeply" if depth > DEEPEST else f"has more than {LARGEST:,} values", file)
    try:
        return join_surrogates(document), []
    except UnicodeError:
        return _refuse("an escape (\\ud800 to \\udfff) stands for half a character: write the character itself", file)


def _refuse(message: str, file: str) -> tuple[None, list[Issue]]:
    return None, [Issue(message, code="profile.syntax", file=file, line=1, column=1)]


def _describe_syntax_error(error: YAMLError, file: str, text: str) -> Issue:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if isinstance(error, ReaderError):  # a control character; its place is counted from the start
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        return Issue(message, code="profile.syntax", file=file, line=line, column=column)
    message = " ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", "")))) or str(error)
    return Issue(message.splitlines()[0], code="profile.syntax", file=file, line=line, column=column)


def _read_sections(document: CommentedMap) -> tuple[dict[str, Any], list[Found]]:
    """The valid sections, and the problems of the others."""
    found: list[Found] = []
    for key in document:
        if key not in SECTIONS and key not in ("name", "description"):
            message = f"unknown section{did_you_mean(str(key), SECTIONS)}"
            found.append(Found((key,), message, code="profile.unknown_key"))
    for key in ("name", "description"):
        if not isinstance(document.get(key, ""), str):
            found.append(Found((key,), "must be text", code="profile.value"))
    sections: dict[str, Any] = {}
    for name, owner in SECTIONS.items():
        value = document.get(name)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            found.append(Found((name,), "must be a mapping", code="profile.value"))
            continue
        if isinstance(owner, dict):
            kind = value.get("kind", next(iter(owner)))
            if not isinstance(kind, str) or kind not in owner:
                message = f"must be one of {', '.join(owner)}, not {show_value(kind)}{did_you_mean(str(kind), owner)}"
                found.append(Found((name, "kind"), message, code="profile.value"))
                continue
            value, owner = {**value, "kind": kind}, load_reference(owner[kind])
        try:
            sections[name] = owner.model_validate(to_plain(value))
        except ValidationError as error:
            found += [Found((name, *keys), message, code=code) for keys, code, message in explain(error, owner)]
    return sections, found
