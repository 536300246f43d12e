"""`cockpit profile`: list, show and check profiles, and print their schema."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ruamel.yaml.error import YAMLError

from cockpit.language.translate import tr
from cockpit.profiles.files import list_profiles, user_folder
from cockpit.remote_names import STDIN_NAME
from cockpit.verbs.output import emit, say, table
from engine.config import launch_files
from engine.config.form import build_schema
from engine.config.profile import Profile, ProfileError, find, list_notes, load, parse, read_text
from engine.protocol.home import Home

STDIN = "-"
"""The name of a profile that comes on standard input."""


def find_profile(name: str, home: Home) -> Path:
    """Find a profile by its path, or by its name among the user's or the built-in ones. Raises ProfileError with
    similar names."""
    own = user_folder(home) / f"{name}.yaml"
    return own if not Path(name).is_file() and own.is_file() else find(name)


def load_profile(
    name: str, overrides: list[str], home: Home, *, rows: bool = False, forecast: bool = False
) -> tuple[Path, Profile]:
    """The file and its profile, `rows` and `forecast` as of `parse`. Raises ProfileError with all problems."""
    if name == STDIN:
        file = os.environ.pop(STDIN_NAME, "stdin")
        profile = parse(_read_stdin(), file, Path.cwd(), overrides, home, rows=rows, forecast=forecast)
        return Path.cwd() / file, profile
    path = find_profile(name, home)
    return path, load(path, overrides, home, rows=rows, forecast=forecast)


def read_profile(name: str, home: Home) -> tuple[Path, str]:
    """The file of a profile and its text, for who parses it several times. Raises ProfileError, ValueError."""
    if name == STDIN:
        return Path.cwd() / os.environ.pop(STDIN_NAME, "stdin"), _read_stdin()
    path = find_profile(name, home)
    try:
        return path, read_text(path)
    except YAMLError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_stdin() -> str:
    return sys.stdin.buffer.read().decode()


def list_(options: argparse.Namespace) -> int:
    found = list_profiles(Home.locate(options.home), Path.cwd())
    if options.json:
        emit(
            [
                {"name": each.name, "place": each.place, "path": str(each.path), "description": each.description}
                for each in found
            ]
        )
    else:
        table(("NAME", "WHERE", "WHAT"), [(each.name, each.place, each.description) for each in found])
    return 0


def show(options: argparse.Namespace) -> int:
    """Print the file unchanged; with `--json` or `--set` print all settings, with defaults and overrides."""
    home = Home.locate(options.home)
    if options.json:
        emit(load_profile(options.profile, options.overrides, home)[1].to_dict())
    elif options.overrides:
        profile = load_profile(options.profile, options.overrides, home)[1]
        for remark in profile.remarks:
            say(remark)
        sys.stdout.write(profile.to_yaml())
    else:
        read = options.profile == STDIN
        sys.stdout.write(_read_stdin() if read else read_text(find_profile(options.profile, home)))
    return 0


def launch_file(options: argparse.Namespace) -> int:
    """Print the file with which another system runs the profile."""
    if options.profile == STDIN:
        raise ValueError(tr("the file names the profile that it runs: name one, instead of -"))
    path, profile = load_profile(options.profile, options.overrides, Home.locate(options.home))
    place = str(path.resolve()) if options.system == "slurm" else options.profile
    text = launch_files.make(options.system, profile, place)
    if options.json:
        emit({"for": options.system, "text": text})
    else:
        sys.stdout.write(text)
    return 0


def check(options: argparse.Namespace) -> int:
    """Print one `file:line:col key: message` a line. Returns 2 when there are any problems."""
    home = Home.locate(options.home)
    try:
        path, profile = load_profile(options.profile, options.overrides, home, rows=True)
    except ProfileError as error:
        if options.json:
            emit({"profile": options.profile, "ok": False, "issues": error.issues})
        else:
            for issue in error.issues:
                print(issue)
        return 2
    if options.json:
        notes = list_notes(profile, home)
        emit({"profile": str(path), "ok": True, "issues": [], "doubts": profile.doubts, "notes": notes})
    else:
        for line in (tr("{path} is valid", path=path), *list_notes(profile, home)):
            say(line)
    return 0


def schema(options: argparse.Namespace) -> int:
    emit(build_schema())
    return 0
