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
from cockpit.screens import SCREENS

Node = TypeVar("Node", bound=type[DOMNode])

WIDGETS = (
    "cockpit.widgets.chart:Chart",
    "cockpit.widgets.conversation:Conversation",
    "cockpit.widgets.form:Form",
    "cockpit.screens.evaluations:EvaluationsScreen",
    "cockpit.screens.metrics:MetricsScreen",
    "cockpit.screens.compare:CompareScreen",
    "cockpit.screens.worst_rows:WorstRowsScreen",
    "cockpit.screens.device_history:DeviceHistoryScreen",
)
"""What has keys that can be chosen, beside the app and the screens with a number."""
MODIFIERS = frozenset({"ctrl", "shift", "alt", "super", "hyper", "meta"})


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
    keys = {str(name): [part.strip() for part in key.split(",")] for name, key in found.items() if isinstance(key, str)}
    return {name: ",".join(filter(None, each)) for name, each in keys.items() if any(each)}


def check_keys(keymap: Mapping[str, str], app: type[DOMNode]) -> Iterator[str]:
    """What is wrong with a keymap for this app, a sentence each: names that do not exist, keys that cannot be, and
    conflicts. This imports all screens."""
    places = [reference for _, reference in SCREENS.values()] + list(WIDGETS)
    classes = [app]
    for reference in places:
        module, name = reference.split(":")
        classes.append(getattr(importlib.import_module(module), name))
    known = [name for node in classes for name in names_of(node).values()]
    for name, keys in keymap.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            if near:
                yield tr("keys.{name}: there is no such action; did you mean {near}?", name=name, near=near[0])
            else:
                yield tr("keys.{name}: there is no such action", name=name)
        for key in keys.split(","):
            if not _is_key(key):
                yield tr("keys.{name}: {key!r} is not a key; write ctrl+k, f9 or K", name=name, key=key)
    for node in classes:
        yield from _find_conflicts(node, app, keymap)


def _is_key(key: str) -> bool:
    """Whether Textual has a key of this name."""
    from textual.keys import Keys, key_to_character

    *modifiers, name = key.split("+") if len(key) > 1 else [key]
    if not MODIFIERS.issuperset(modifiers):
        return False
    if len(name) == 1:
        return name.isprintable() and not name.isspace() and not (modifiers and name.isupper())
    return name in {known.value.rpartition("+")[2] for known in Keys} or key_to_character(name) is not None


def _find_conflicts(node: type[DOMNode], app: type[DOMNode], keymap: Mapping[str, str]) -> Iterator[str]:
    """Keys that the keymap gives to several actions of a class, or that the app has already."""
    taken, everywhere = _assign(node, keymap), _assign(app, keymap) if node is not app else {}
    always = _kept_keys(app)
    for key, names in taken.items():
        changed = sorted(name for name in names if name in keymap)
        above = everywhere.get(key, set())
        if changed and key in always:
            yield tr(
                "{key} keeps its meaning everywhere: choose another key for {changed}", key=key, changed=changed[0]
            )
        elif changed and (others := sorted((names | above) - {changed[0]})):
            yield tr(
                "{key} is {changed} and also {others}; the first wins: choose another key for one",
                key=key,
                changed=changed[0],
                others=", ".join(others),
            )
        elif hidden := sorted(name for name in above if name in keymap):
            yield tr(
                "{key} is {own} on its screen, where it is not {hidden}: choose another key for one",
                key=key,
                own=", ".join(sorted(names)),
                hidden=hidden[0],
            )


def _kept_keys(app: type[DOMNode]) -> set[str]:
    """The keys that mean the same everywhere, such as ctrl+p."""
    bindings = app._merged_bindings
    return {key for key, each in (bindings.key_to_bindings if bindings else {}).items() if each[0].priority}


def _assign(node: type[DOMNode], keymap: Mapping[str, str]) -> dict[str, set[str]]:
    """Key -> the actions that it has with this keymap: their names or, of keys that cannot be chosen, the actions."""
    taken: dict[str, set[str]] = {}
    bindings = node._merged_bindings
    for key, each in (bindings.key_to_bindings if bindings else {}).items():
        for binding in each:
            for now in keymap.get(binding.id or "", key).split(","):
                taken.setdefault(_normal(now), set()).add(binding.id or binding.action)
    return taken


def _normal(key: str) -> str:
    from textual.keys import _character_to_key

    return _character_to_key(key) if len(key) == 1 else key
