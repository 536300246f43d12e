"""Remarks about the services that a profile names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.llm_api.client import describe_plain_http


def describe_services(profile: Any, home: Any) -> Iterator[str]:
    """A warning for each service that gets a key and rows over plain HTTP."""
    for options in (profile.data.expand, profile.evaluation.judge):
        if options is not None and (warning := describe_plain_http(options)):
            yield warning
