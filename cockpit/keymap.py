"""The keys that the user has chosen: `keys:` in settings.yaml, a mapping from `screen.action` to keys.

Every binding has a name: the screen or part that has the key, and the action. Actions that share a key, such as pause
and continue, share the name of the first, so that they move together.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from textual.binding import BindingsMap
from textual.dom import DOMNode

from cockpit.language.translate import tr

Node = TypeVar("Node", bound=type[DOMNode])

WIDGETS = (
    "cockpit.widgets.chart:Chart",
    "cockpit.widgets.conversation:Conversation",
    "cockpit.widgets.form:Form",
    "cockpit.screens.evaluations:EvaluationsScreen",
    "cockpit.screens.metrics:MetricsScreen",
    "cockpit.screens.compare:CompareScreen",
    "cockpit.screens.worst_rows:WorstRowsScreen",
)
"""What has keys that can be chosen, beside the app and the screens with a number."""
_KEY = re.compile(r"[a-z0-9_+]+|[A-Z]|[^\s\w]", re.ASCII)


def named(node: Node) -> Node:
    """Decorate a class of Textual's with keys: give each of its bindings a name."""
    title = re.sub(r"^Cockpit|Screen$", "", node.__name__)
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", title).lower()
    bindings = node._merged_bindings or BindingsMap()
    names: dict[str, str] = {}
    for each in bindings.key_to_bindings.values():
        first = each[0].action
        if "." not in first and not each[0].priority:
            action = re.sub(r"^go\('(\w+)'\)$", r"\1", first)
            for binding in each:
                names.setdefault(binding.action, names.get(first, f"{prefix}.{action}"))
    for key, each in bindings.key_to_bindings.items():
        bindings.key_to_bindings[key] = [
            binding if binding.priority else replace(binding, id=names.get(binding.action)) for binding in each
        ]
    return node


def names_of(node: DOMNode | type[DOMNode]) -> dict[str, str]:
    """Action -> name of each binding of a class whose keys have names."""
    bindings = node._merged_bindings
    everything = bindings.key_to_bindings.values() if bindings else ()
    return {binding.action: binding.id for each in everything for binding in each if binding.id}


def read_keys(found: Any) -> dict[str, str]:
    """The keymap that the settings hold, without what is no text."""
    if not isinstance(found, Mapping):
        return {}
    return {str(name): key.replace(" ", "") for name, key in found.items() if isinstance(key, str) and key.strip()}


def check_keys(keymap: Mapping[str, str], app: type[DOMNode]) -> Iterator[str]:
    """What is wrong with a keymap, a sentence each: names that do not exist, keys that cannot be, and conflicts, also
    with those of the app. This imports all screens."""
    from cockpit.screens import SCREENS

    places = [reference for _, reference in SCREENS.values()] + list(WIDGETS)
    classes: list[type[DOMNode]] = [app]
    for reference in places:
        module, name = reference.split(":")
        classes.append(getattr(importlib.import_module(module), name))
    known = [name for node in classes for name in names_of(node).values()]
    for name, keys in keymap.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            yield tr(
                "keys.{name}: there is no such action{value}",
                name=name,
                value=f"; did you mean {near[0]}?" if near else "",
            )
        for key in keys.split(","):
            if not _KEY.fullmatch(key.strip()):
                yield tr("keys.{name}: {key!r} is not a key; write ctrl+k, f5 or K", name=name, key=key.strip())
    for node in classes:
        yield from _find_conflicts(node, app, keymap)


def _find_conflicts(node: type[DOMNode], app: type[DOMNode], keymap: Mapping[str, str]) -> Iterator[str]:
    """Keys of a class that the keymap gives to several of its actions, or takes from the app."""
    taken = _assign(node, keymap)
    everywhere = _assign(app, keymap) if node is not app else {}
    for key, names in taken.items():
        changed = sorted(name for name in names if name in keymap)
        others = sorted((names | everywhere.get(key, set())) - set(changed[:1]))
        if changed and others:
            yield tr(
                "{key} is {changed} and also {others}; the first wins: choose another key for one",
                key=key,
                changed=changed[0],
                others=", ".join(others),
            )


def _assign(node: type[DOMNode], keymap: Mapping[str, str]) -> dict[str, set[str]]:
    """Key -> the names of the actions that it has with this keymap."""
    taken: dict[str, set[str]] = {}
    bindings = node._merged_bindings
    for key, each in (bindings.key_to_bindings if bindings else {}).items():
        for binding in each:
            if binding.id:
                for now in keymap.get(binding.id, key).split(","):
                    taken.setdefault(_normal(now.strip()), set()).add(binding.id)
    return taken


def _normal(key: str) -> str:
    from textual.keys import _character_to_key

    return _character_to_key(key) if len(key) == 1 else key
