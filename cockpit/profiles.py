"""The profiles that one can pick: the built-in ones, those in the working directory, those kept in the home."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.config.bundled import find_bundled
from engine.protocol.home import Home

DEMO = "triples-qlora"
"""The built-in profile that needs nothing but the embedded model."""
_SECTION = re.compile(r"^(model|adapter|method|training)\s*:", re.MULTILINE)
_DATA = re.compile(r"^data\s*:", re.MULTILINE)
_DESCRIPTION = re.compile(r"^description\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class ProfileFile:
    """One profile on disk. `place` says whose it is: `built-in`, `here` or `home`."""

    path: Path
    place: str
    description: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def builtin(self) -> bool:
        return self.place == "built-in"


def folder_of_own(home: Home) -> Path:
    """Where profiles are kept that belong to no working directory."""
    return home.root / "profiles"


def profile_files(home: Home, directory: Path) -> list[ProfileFile]:
    """Own profiles first, then the built-in ones, of which the demo's, which lacks nothing, comes first. A YAML file that is no
    profile (a compose file, say) is left out."""
    places = (("here", directory), ("home", folder_of_own(home)), ("built-in", find_bundled("profiles")))
    found: dict[Path, ProfileFile] = {}
    for place, folder in places:
        paths = folder.glob("*.yaml") if folder.is_dir() else ()
        for path in sorted(paths, key=lambda path: (path.stem != DEMO, path)):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if _DATA.search(text) and _SECTION.search(text):
                description = _DESCRIPTION.search(text)
                found.setdefault(path.resolve(), ProfileFile(path, place, description[1] if description else ""))
    return list(found.values())
