"""The base of everything that a profile can say.

An options model is declared once, beside the code that reads it; the form, the JSON Schema, the reference page and the
messages are derived from it. `option` gives a field its default, its one-line help and its unit.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Strict with what people write: unknown keys and wrong types are errors, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=False)


def option(default: Any = ..., *, help: str, unit: str = "", **constraints: Any) -> Any:  # noqa: A002 - the field's word for it
    """A documented field. `constraints` are pydantic's: `ge`, `gt`, `le`, `min_length`, `examples` …"""
    if isinstance(default, (list, dict)):
        kept = default
        constraints["default_factory"] = lambda: type(kept)(kept)
    else:
        constraints["default"] = default
    return Field(description=help, json_schema_extra={"unit": unit} if unit else None, **constraints)


class Variant(Options):
    """One row of a table of kinds (a method, an adapter, a launch strategy): `kind` tells which."""

    kind: str
