"""Changes one setting in a YAML text and nothing else: comments, order and layout stay as the author left them.

ruamel composes the text into nodes with a start and an end; an edit replaces exactly that span. Pure.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cockpit.language.translate import tr
from engine.config import yaml_text

INDENT = "  "


def read_yaml(text: str) -> dict[str, Any]:
    """The text as plain data; empty when it is not a YAML mapping (yet)."""
    try:
        yaml_text.check(text)
        document = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def value_at(document: dict[str, Any], key: str) -> Any:
    """The setting `section.name`, at any depth (or `name`). Raises KeyError when the document does not have it."""
    node: Any = document
    for part in key.split("."):
        if not isinstance(node, dict):
            raise KeyError(key)
        node = node[part]
    return node


def set_value(text: str, key: str, value: str) -> str:
    """The text with `section.name` (or `name`) set to `value`, which is YAML on one line.

    Raises ValueError, with a message for the user, when the text or the value is not YAML, or when the value would be
    read differently at that place.
    """
    value = value.strip() or '""'
    try:
        yaml_text.check(value)
        expected = YAML(typ="safe", pure=True).load(value)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(tr("not a YAML value: {value}", value=value)) from error
    root = _compose(text)
    section, _, name = key.partition(".")
    if name.count("."):
        changed = _put_deep(text, root, key.split("."), value)
    elif not name:
        changed = _put(text, root, section, value, "")
    elif (pair := _find(root, section)) is None:
        changed = f"{text.rstrip()}\n\n{section}:\n{INDENT}{name}: {value}\n".lstrip("\n")
    elif isinstance(pair[1], MappingNode):
        changed = _put(text, pair[1], name, value, INDENT)
    else:
        changed = _insert_after_line(text, pair[0].start_mark.line, f"{INDENT}{name}: {value}")
    with contextlib.suppress(KeyError):
        if value_at(read_yaml(changed), key) == expected:
            return changed
    raise ValueError(tr("cannot write {value} there; edit the YAML instead", value=value))


def set_values(text: str, settings: Mapping[str, Any]) -> str:
    """The text with these settings, given as plain data. Raises ValueError as `set_value` does."""
    for key, value in settings.items():
        text = set_value(text, key, value if isinstance(value, str) else json.dumps(value))
    return text


def add_item(text: str, key: str, item: str) -> str:
    """The text with a string added to the list `section.name`, which is made if it is not there. The items before it
    and their comments stay. Raises ValueError as `set_value` does."""
    document = read_yaml(text)
    with contextlib.suppress(KeyError):
        if before := value_at(document, key):
            node: Any = _compose(text)
            for name in key.split("."):
                pair = _find(node, name)
                node = pair[1] if pair else None
            written = json.dumps(item, ensure_ascii=False)
            if isinstance(node, SequenceNode) and node.value and node.flow_style:
                changed = f"{text[: _end(node.value[-1])]}, {written}{text[_end(node.value[-1]) :]}"
            elif isinstance(node, SequenceNode) and node.value:
                line = text.count("\n", 0, _end(node.value[-1]))
                changed = _insert_after_line(text, line, f"{' ' * node.start_mark.column}- {written}")
            else:
                changed = ""
            with contextlib.suppress(KeyError):
                if value_at(read_yaml(changed), key) == [*before, item]:
                    return changed
            return set_value(text, key, json.dumps([*before, item], ensure_ascii=False))
    return set_value(text, key, json.dumps([item], ensure_ascii=False))


def clear_value(text: str, key: str) -> str:
    """The text without that setting, so that its default applies. Unchanged when the text does not have it.

    A group that loses its last setting stays switched on: `clean:` alone would be null, which is off.
    """
    *sections, name = key.split(".")
    node: Node | None = _compose(text)
    for section in sections:
        pair = _find(node, section)
        node = pair[1] if pair else None
    found = _find(node, name)
    if found is None or not isinstance(node, MappingNode):
        return text
    if len(sections) > 1 and len(node.value) == 1:
        return set_value(text, ".".join(sections), "{}")
    start, end = found[0].start_mark, _end(found[1])
    if not node.flow_style:
        lines = text.splitlines(keepends=True)
        last = text.count("\n", 0, end)
        return "".join(lines[: start.line] + lines[last + 1 :])
    head, tail = text[: start.index], text[end:]
    if tail.lstrip().startswith(","):
        return head + tail.lstrip().removeprefix(",").lstrip()
    return head.rstrip().removesuffix(",") + tail


def _put_deep(text: str, root: MappingNode | None, keys: list[str], value: str) -> str:
    """The text with a setting inside a group set. A group that is not there, or that is null, is made."""
    node: MappingNode | None = root
    for depth, name in enumerate(keys[:-1]):
        pair = _find(node, name)
        if pair is not None and isinstance(pair[1], MappingNode) and pair[1].value:
            node = pair[1]
            continue
        if pair is not None and isinstance(pair[1], ScalarNode) and pair[1].value not in ("", "null", "~"):
            raise ValueError(
                tr(
                    "{keys} is {value}, and no mapping; edit the YAML instead",
                    keys=".".join(keys[: depth + 1]),
                    value=pair[1].value,
                )
            )
        inner = value
        for key in reversed(keys[depth + 1 :]):
            inner = f"{{{key}: {inner}}}"
        if depth == 0:
            inner = value
            for key in reversed(keys[2:]):
                inner = f"{{{key}: {inner}}}"
            return set_value(text, ".".join(keys[:2]), inner)
        return _put(text, node, name, inner, INDENT * depth)
    return _put(text, node, keys[-1], value, INDENT * (len(keys) - 1))


def _compose(text: str) -> MappingNode | None:
    try:
        yaml_text.check(text)
        root = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(tr("the text is not valid YAML; fix that first")) from error
    if root is not None and not isinstance(root, MappingNode):
        raise ValueError(tr("a profile is a mapping of sections; fix that first"))
    return root


def _find(node: Node | None, name: str) -> tuple[Node, Node] | None:
    """The key and value nodes of `name` in a mapping."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((pair for pair in pairs if pair[0].value == name), None)


def _put(text: str, mapping: MappingNode | None, name: str, value: str, indent: str) -> str:
    """Replace the value of `name` in this mapping, or add the setting as the last one."""
    if mapping is None or not mapping.value:
        if mapping is not None:  # `{}`
            return text[: mapping.start_mark.index] + f"{{{name}: {value}}}" + text[mapping.end_mark.index :]
        return f"{text.rstrip()}\n{indent}{name}: {value}\n".lstrip("\n")
    if (pair := _find(mapping, name)) is not None:
        start, end = pair[1].start_mark.index, _end(pair[1])
        if isinstance(pair[1], ScalarNode) and start == end:  # `name:` with nothing after it
            start = end = pair[0].end_mark.index + 1
            return f"{text[:start]} {value}{text[end:]}"
        if not getattr(pair[1], "flow_style", True):  # a block that began on a line of its own
            start = pair[0].end_mark.index + 1
            return f"{text[:start]} {value}{text[end:]}"
        return text[:start] + value + _keep_comment_column(text[end:], len(value) - (end - start))
    last = mapping.value[-1]
    if mapping.flow_style:
        return f"{text[: _end(last[1])]}, {name}: {value}{text[_end(last[1]) :]}"
    line = text.count("\n", 0, _end(last[1]))
    return _insert_after_line(text, line, f"{' ' * last[0].start_mark.column}{name}: {value}")


def _end(node: Node) -> int:
    """The index just after the node's own text. A block's end mark comes after the comments that follow it, so take its
    last leaf's."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _keep_comment_column(tail: str, growth: int) -> str:
    """The text after a value that grew by `growth` characters. A comment on its line stays in its column if there is
    room."""
    rest = tail.lstrip(" ")
    blanks = len(tail) - len(rest)
    return " " * max(1, blanks - growth) + rest if rest.startswith("#") else tail


def _insert_after_line(text: str, line: int, addition: str) -> str:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join([*lines[: line + 1], addition + "\n", *lines[line + 1 :]])


def to_flow_yaml(value: Any) -> str:
    """A value as YAML on one line: None is `null`, lists and mappings in brackets."""
    if isinstance(value, list):
        return f"[{', '.join(map(to_flow_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {to_flow_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and parse_scalar(f"[{value}]") == [value]:
        return value
    if isinstance(value, date):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def parse_scalar(text: str) -> Any:
    """The value of `text` as YAML; None when it is not valid."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        return None
