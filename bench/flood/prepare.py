"""Nothing to prepare."""

from __future__ import annotations

from tests.scripted.script import Script

Script().run.prepared.write_text("{}")
