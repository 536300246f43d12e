"""Runs on several hosts: trial clusters on this one, and what is tried with them."""

from __future__ import annotations

import os

import pytest

long = pytest.mark.skipif(
    not os.environ.get("COCKPIT_LONG_TESTS"), reason="takes a minute or more: set COCKPIT_LONG_TESTS=1"
)
"""Marks proofs that shorter tests nearly give as well."""


class UnavailableError(Exception):
    """The trial cluster cannot be started here, in a container perhaps."""
