"""Finding profiles: the built-in ones, those in the working directory, and those in the home."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.config.bundled import find_bundled
from engine.protocol.home import Home, make_private, write_private

DEMO = "triples-qlora"
"""The built-in profile that needs only the embedded model."""
_SECTION = re.compile(r"^(model|adapter|method|training)\s*:", re.MULTILINE)
_DATA = re.compile(r"^data\s*:", re.MULTILINE)
_DESCRIPTION = re.compile(r"^description\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class ProfileFile:
    """One profile on disk. `place` is `built-in`, `here` (the working directory) or `home`."""

    path: Path
    place: str
    description: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def builtin(self) -> bool:
        return self.place == "built-in"


def user_folder(home: Home) -> Path:
    """The folder for the user's profiles in the home."""
    return home.root / "profiles"


def list_profiles(home: Home, directory: Path) -> list[ProfileFile]:
    """The user's profiles first, then the built-in ones, the demo's first among them because it needs nothing else.
    YAML files that are not profiles (a compose file, for instance) are left out."""
    from engine.config.yaml_text import LARGEST  # ruamel: most verbs that import this module need none of it

    places = (("here", directory), ("home", user_folder(home)), ("built-in", find_bundled("profiles")))
    found: dict[Path, ProfileFile] = {}
    for place, folder in places:
        paths = folder.glob("*.yaml") if folder.is_dir() else ()
        for path in sorted(paths, key=lambda path: (path.stem != DEMO, path)):
            try:
                if not path.is_file() or path.stat().st_size > LARGEST:
                    continue  # a pipe or a data file
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if _DATA.search(text) and _SECTION.search(text):
                description = _DESCRIPTION.search(text)
                found.setdefault(path.resolve(), ProfileFile(path, place, description[1] if description else ""))
    return list(found.values())


def free_path(path: Path) -> Path:
    """This path, or with a number behind its name the first that does not exist."""
    number = 2
    free = path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free


def write_profile(path: Path, text: str, home: Home) -> None:
    """Replace a profile's file atomically. In the home it is the user's alone; elsewhere the umask says who may read
    it."""
    if home.root in path.parents:
        make_private(path.parent)
        write_private(path, text.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
