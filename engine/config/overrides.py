"""Reads and applies overrides: `--set section.key=value`.

The path names keys and items of lists, `data.train.0.source` or `data.train[0].source`. The value is YAML, in which `#`
is a character like any other, as there are no comments in one value.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from engine.config import yaml_text

Keys = tuple[str | int, ...]

_ITEM = re.compile(r"([^\[\]]*)((?:\[\d{1,9}\])*)")
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_LARGEST = 1 << 63
_HASH = "\ue000"
"""Stands for `#` while YAML is read. A character for private use, which no setting needs."""
DEEPEST = 50
"""Most levels of lists and mappings within each other."""


@dataclass
class Overrides:
    """What was applied to a profile's document. `places` are the keys that were set, `refused` the overrides that
    cannot be applied, each `(name, message)`, and `remarks` sentences for the user."""

    places: set[Keys] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def apply_overrides(document: CommentedMap, overrides: Iterable[str], sections: Mapping[str, Any]) -> Overrides:
    """Apply each `a.b=c` to a profile. `sections` are those of `profile.SECTIONS`."""
    applied = Overrides()
    kinds = {name: find_kind(document, name, owner) for name, owner in sections.items()}
    for override in overrides:
        try:
            keys, value = split_override(override)
            _apply_override(document, keys, value, sections, applied)
        except ValueError as error:
            name = override.partition("=")[0].strip().encode("utf-8", "replace").decode()
            applied.refused.append((name, str(error)))
    for name, before in kinds.items():
        now = find_kind(document, name, sections[name])
        if before and now and before != now:
            _drop_settings_of_other_kind(document, name, (before, now), sections[name], applied)
    return applied


def find_kind(document: Mapping[Any, Any], name: str, owner: Any) -> str | None:
    """The kind of a section that has kinds, which `owner` lists; None where it is not valid."""
    value = document.get(name)
    if not isinstance(owner, dict) or not isinstance(value, Mapping):
        return None
    kind = value.get("kind", next(iter(owner)))
    return kind if isinstance(kind, str) and kind in owner else None


def load_reference(reference: str) -> Any:
    """Import the object that a `"module:name"` string names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def split_override(text: str) -> tuple[Keys, Any]:
    """The keys and the value of `a.b=c`. Raises ValueError with a message that names neither."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("write it as section.key=value")
    return parse_keys(name), parse_value(value)


def parse_keys(name: str) -> Keys:
    """The keys of `a.b[0].c` or `a.b.0.c`. Raises ValueError."""
    keys: list[str | int] = []
    for part in name.strip().split("."):
        match = _ITEM.fullmatch(part)
        if match is None or not match[1] or not _is_unicode(name):
            raise ValueError("write it as section.key=value")
        keys.append(read_key(match[1]))
        keys += map(int, re.findall(r"\d+", match[2]))
    return tuple(keys)


def read_key(key: str) -> str | int:
    """A key as text, or the number of an item."""
    return int(key) if _NUMBER.fullmatch(key) else key


def parse_value(text: str) -> Any:
    """The value that YAML text stands for: text, a number, true, false, null, a list or a mapping. Raises
    ValueError."""
    if not _is_unicode(text):
        raise ValueError("the value is not UTF-8")
    try:
        yaml_text.check(text)
        parsed = _put_hashes_back(YAML(typ="safe", pure=True).load(text.replace("#", _HASH)))
    except YAMLError as error:
        reason = " ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", ""))))
        raise ValueError(f"the value is not YAML: {reason or str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    except _Unsuitable as error:
        raise ValueError(str(error)) from None
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:  # of a tag such as `!!int x`
        raise ValueError(f"the value is not YAML: {error}") from None
    return text.strip() if isinstance(parsed, date) else parsed


def _apply_override(
    document: CommentedMap, keys: Keys, value: Any, sections: Mapping[str, Any], applied: Overrides
) -> None:
    """Put the value there. A whole section keeps its other settings. Raises ValueError when there is no such place."""
    name = str(keys[0])
    if len(keys) == 1 and name in sections and isinstance(document.get(name), Mapping):
        _apply_section(document, name, value, applied)
        return
    node: Any = document
    for place, key in enumerate(keys[:-1]):
        if isinstance(node, list):
            _check_item(node, key)
        elif not isinstance(node.get(key), (dict, list)):
            if isinstance(keys[place + 1], int) and node.get(key) is not None:
                raise ValueError(f"{key} is no list, so there is no item {keys[place + 1]}")
            node[key] = CommentedMap()
        node = node[key]
        if not isinstance(node, (dict, list)):
            raise ValueError(f"item {key} has no settings: it is {node!r}")
    if isinstance(node, list):
        _check_item(node, keys[-1])
    node[keys[-1]] = value
    applied.places.add(keys)


def _apply_section(document: CommentedMap, name: str, value: Any, applied: Overrides) -> None:
    section = document[name]
    if not section:
        document[name] = value
        applied.places.add((name,))
        return
    settings = ", ".join(map(str, section))
    if not isinstance(value, Mapping):
        raise ValueError(f"would drop this section's settings ({settings}): set single ones, {name}.KEY=VALUE")
    for key, item in value.items():
        section[key] = item
        applied.places.add((name, key))
    if kept := [str(key) for key in section if key not in value]:
        applied.remarks.append(f"--set {name}: other settings of the section stay as they are: {', '.join(kept)}")


def _drop_settings_of_other_kind(
    document: CommentedMap, section: str, kinds: tuple[str, str], owner: Mapping[str, str], applied: Overrides
) -> None:
    """Take out the settings of a section that only its former kind has. `kinds` are the former and the new one. What an
    override sets stays, to be refused."""
    settings = document[section]
    former, new = (set(load_reference(owner[kind]).model_fields) for kind in kinds)
    lost = [
        key
        for key in settings
        if key in former - new and not any(place[:2] == (section, key) for place in applied.places)
    ]
    for key in lost:
        del settings[key]
    if lost:
        applied.remarks.append(
            f"--set {section}.kind={kinds[1]}: left out what only {kinds[0]} has: {', '.join(map(str, lost))}"
        )


def measure(node: Any) -> tuple[int, int]:
    """The depth of a document and the number of its nodes, with what an alias stands for counted each time.

    Both are beyond any limit for a document that contains itself.
    """
    known: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def visit(each: Any) -> tuple[int, int]:
        if not isinstance(each, (Mapping, list, tuple, set)):
            return 0, 1
        if id(each) in open_nodes:
            return 1 << 62, 1 << 62
        if id(each) not in known:
            open_nodes.add(id(each))
            inner = [visit(item) for item in (each.values() if isinstance(each, Mapping) else each)]
            open_nodes.discard(id(each))
            known[id(each)] = 1 + max((depth for depth, _ in inner), default=0), 1 + sum(size for _, size in inner)
        return known[id(each)]

    try:
        return visit(node)
    except RecursionError:
        return 1 << 62, 1 << 62


def join_surrogates(node: Any) -> Any:
    """The document with each pair of escapes such as `\\ud83d\\ude00`, as JSON writes characters, made one character.
    Lists and mappings are changed in place. Raises UnicodeError for half of a pair."""
    if isinstance(node, str):
        return node if _is_unicode(node) else node.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    if isinstance(node, (dict, list)):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            if isinstance(key, str) and not _is_unicode(key):
                raise UnicodeError("a name has a character in two escapes")
            if isinstance(node[key], (str, dict, list)):
                node[key] = join_surrogates(node[key])
    return node


class _Unsuitable(Exception):
    """A value that no setting can have."""


def _put_hashes_back(value: Any) -> Any:
    if measure(value)[0] > DEEPEST:
        raise _Unsuitable("the value is nested too deeply")
    try:
        return _to_plain(join_surrogates(value))
    except UnicodeError:
        raise _Unsuitable("the value has an escape that is half a character") from None


def _to_plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_HASH, "#")
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int, float, bool)) for key in value):
            raise _Unsuitable("the value has a mapping whose names are no text")
        return {_to_plain(str(key)): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LARGEST:
        raise _Unsuitable("the value is too large a number")
    if value is None or isinstance(value, (bool, int, float, date)):
        return value
    raise _Unsuitable("the value must be text, a number, true, false, null, a list or a mapping")


def _check_item(items: list[Any], key: str | int) -> None:
    if not isinstance(key, int) or key >= len(items):
        raise ValueError(f"there is no item {key}")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def to_plain(value: Any) -> Any:
    """Convert ruamel's containers and scalars to plain Python ones: strict validation accepts no others."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
