"""The base class of all options of a profile.

An options model is declared once, beside the code that reads it. The form, the JSON Schema, the reference page and
the error messages are derived from it. `option` gives a field its default, its one-line help and its unit.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Unknown keys, wrong types and numbers that are not finite are errors, and an instance cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=False, defer_build=True
    )


def option(default: Any = ..., *, help: str, unit: str = "", **constraints: Any) -> Any:  # noqa: A002 - what argparse calls it too
    """A documented field. `constraints` are pydantic's: `ge`, `gt`, `le`, `min_length`, `examples` …"""
    if isinstance(default, (list, dict)):
        original = default
        constraints["default_factory"] = lambda: type(original)(original)
    else:
        constraints["default"] = default
    return Field(description=help, json_schema_extra={"unit": unit} if unit else None, **constraints)


class Variant(Options):
    """The options of one kind in a table of kinds (a method, an adapter): `kind` names it."""

    kind: str
