"""Keeps the layout of the panels of metrics of each profile in `charts.json` of the home."""

from __future__ import annotations

import json
from typing import Any

from cockpit.state.panel_layout import PanelLayout
from engine.protocol.home import Home, make_private, write_private

MOST = 200
"""Profiles whose layout is kept; the ones changed longest ago are forgotten."""


def load_layout(home: Home, profile: str) -> PanelLayout:
    return PanelLayout.from_json(_read(home).get(profile))


def save_layout(home: Home, profile: str, layout: PanelLayout) -> bool:
    """Keep the layout. Returns False where nothing can be written; it then holds until the app ends."""
    kept = {name: each for name, each in _read(home).items() if name != profile}
    kept[profile] = layout.to_json()
    text = json.dumps(dict(list(kept.items())[-MOST:]), ensure_ascii=False)
    try:
        make_private(home.charts.parent)
        write_private(home.charts, text.encode(errors="surrogatepass"), durable=False)
    except OSError:
        return False
    return True


def _read(home: Home) -> dict[str, Any]:
    try:
        found = json.loads(home.charts.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
