"""How the app draws a reply. A task names one of these; a task that names none is drawn as a tree of its JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A JSON list of objects: one object a row, and below the table how many `noun`s there are.

    A column's cell also shows the text under the key `COLUMN_type`, where an object has one.
    """

    columns: tuple[str, ...]
    noun: str


@dataclass(frozen=True)
class Outline:
    """A JSON object: the text under `title`, the numbered list under `points` with the list under `details` below each
    point, and the list under `objections`. The items of all lists are objects with a `text`.
    """

    title: str
    points: str
    details: str
    objections: str


View = Table | Outline
