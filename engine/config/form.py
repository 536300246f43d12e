"""The fields of a form, and the JSON Schema, derived from the declaration of the profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from engine.config.overrides import load_reference
from engine.config.profile import SECTIONS
from engine.options.base import Options
from engine.options.data import SourceOptions


@dataclass(frozen=True)
class Field:
    """One setting of a form. `kind`: `bool`, `int`, `float`, `text`, `choice`, `list`, `mapping`, `sources` (a list of
    sources), or `group`, whose own settings follow it and name it in `group`."""

    key: str
    kind: str
    default: Any
    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    required: bool = False
    group: str = ""


def list_fields(method: str | None = None, adapter: str | None = None) -> list[Field]:
    """All settings in the order of the file, for a kind of method and of adapter (by default the first of their
    tables)."""
    fields = [Field("name", "text", "", help="What the run is called; letters, digits, dashes.")]
    chosen = {"method": method, "adapter": adapter}
    for name, owner in SECTIONS.items():
        if isinstance(owner, dict):
            kind = chosen[name] or next(iter(owner))
            fields.append(Field(f"{name}.kind", "choice", next(iter(owner)), f"Which {name}.", choices=tuple(owner)))
            owner = load_reference(owner[kind])
        fields += [
            field
            for key, info in owner.model_fields.items()
            if key != "kind"
            for field in _make_fields(f"{name}.{key}", info, "")
        ]
    return fields


def _make_fields(key: str, info: FieldInfo, group: str) -> Iterator[Field]:
    """The field, and those of a group behind it."""
    field = _make_field(key, info, group)
    yield field
    if field.kind == "group":
        for name, inner in _find_group(info.annotation)[0].model_fields.items():
            yield from _make_fields(f"{key}.{name}", inner, key)


def _find_group(annotation: Any) -> list[type[Options]]:
    """The options model of a setting that is a mapping of settings and nothing else."""
    if get_origin(annotation) in (list, dict):
        return []
    branches = [branch for branch in get_args(annotation) if branch is not type(None)] or [annotation]
    found = [branch for branch in branches if isinstance(branch, type) and issubclass(branch, Options)]
    return found if len(branches) == 1 else []


def _make_field(key: str, info: FieldInfo, group: str) -> Field:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    kind, choices, optional = _choose_kind(info.annotation)
    if _find_group(info.annotation):
        kind = "group"
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return Field(
        key,
        kind,
        default.model_dump() if isinstance(default, Options) else default,
        info.description or "",
        str(extra.get("unit", "")),
        choices,
        optional,
        info.is_required(),
        group,
    )


def _choose_kind(annotation: Any) -> tuple[str, tuple[str, ...], bool]:
    if get_origin(annotation) in (list, dict):
        kinds = {list: "sources" if annotation == list[SourceOptions] else "list", dict: "mapping"}
        return kinds[get_origin(annotation)], (), False
    plain = {bool: "bool", int: "int", float: "float", str: "text"}
    if annotation in plain:
        return plain[annotation], (), False
    branches = [branch for branch in get_args(annotation) if branch is not type(None)]
    optional = type(None) in get_args(annotation)
    if branches and all(isinstance(branch, str) for branch in branches):
        return "choice", tuple(branches), False
    if len(branches) == 1:
        kind, choices, _ = _choose_kind(branches[0])
        return kind, choices, optional
    origin = str(getattr(annotation, "__origin__", ""))
    if "dict" in origin:
        return "mapping", (), optional
    return ("list" if "list" in origin else "text"), (), optional


def build_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a profile."""
    properties: dict[str, Any] = {"name": {"type": "string"}, "description": {"type": "string"}}
    definitions: dict[str, Any] = {}

    def add(model: type[Options]) -> dict[str, Any]:
        own = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        return own

    for name, owner in SECTIONS.items():
        if isinstance(owner, dict):
            properties[name] = {"oneOf": [add(load_reference(reference)) for reference in owner.values()]}
        else:
            properties[name] = add(owner)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cockpit profile",
        "type": "object",
        "properties": properties,
        "required": ["data"],
        "additionalProperties": False,
        "$defs": definitions,
    }
