"""Finds the files of a source: a path beside the profile comes first, then a path in the bundled data/."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.config.bundled import find_bundled
from engine.models.files import describe_kind
from engine.prep import readers, splits
from engine.prep.expand import decisions
from engine.prep.files import KINDS
from engine.prep.formats.cells import drop_nulls
from engine.prep.splits import Choice
from engine.protocol.home import Home
from engine.protocol.text import did_you_mean
from engine.storage import cache

HUB = "hf://"
_HUB = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@:]+))?(?:@(?P<split>\w[\w.-]*))?")
_WILD = re.compile(r"[*?[]")
_BESIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "cache-*.arrow")
"""Files that `datasets` and catalogues put into a folder and that hold no rows."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


class HubSource(NamedTuple):
    """A data set on the Hugging Face hub."""

    name: str
    config: str | None
    split: str


def find_source(source: str, directory: Path) -> Path | str:
    """The absolute path of the file or folder that `source` names; a hub source (`hf://org/name`) is returned
    unchanged.

    Raises ValueError, with a suggestion, if nothing has that name.
    """
    if source.startswith(HUB):
        return source
    for folder in _search_folders(directory):
        try:
            # Links are not resolved: in the hub's cache only the link has a name that tells the kind of file.
            path = Path(os.path.abspath(folder / Path(source).expanduser()))
        except RuntimeError:
            continue  # the home of an unknown user
        if path.exists():
            return path
    raise ValueError(
        f"there is no {source} beside the profile ({directory}) nor among "
        f"the bundled samples{_suggest_source(source, directory)}"
    )


def list_files(source: str, directory: Path, part: str = "train") -> list[Path]:
    """The files of a source, absolute and sorted: a file, the readable files below a folder, or the matches of a glob.

    Of a folder with files for several splits, those of `part` are taken (see `splits`; `find_left_out` has the others).
    For a folder made by `cockpit data expand` this is the file of the rows that were kept. A file that is reached in
    two ways counts once. Raises ValueError if nothing has that name or nothing can be read.
    """
    return _choose_files(source, directory, part).taken


def find_left_out(source: str, directory: Path, part: str = "train") -> list[Path]:
    """The files of a source that are not read, because their names say that they are for another part."""
    return [] if source.startswith(HUB) else _choose_files(source, directory, part).left


def _choose_files(source: str, directory: Path, part: str) -> Choice:
    if source.startswith(HUB):
        raise ValueError(f"{source} is on the hub: it must be fetched first")
    try:
        found = find_source(source, directory)
    except ValueError:
        if not _WILD.search(source):
            raise
        return Choice(_match_glob(source, directory), [])
    path = Path(found)
    if path.is_dir():
        _check_one_split(path, source)
        if decisions.is_expansion(path):
            return Choice([path / decisions.ROWS], [])
        return splits.choose(_list_below(path, source), path, part)
    if not path.is_file():
        raise ValueError(f"{source} is {describe_kind(path.stat().st_mode)}, not a file: it cannot be read twice")
    readers.find_kind(path)
    return Choice([path], [])


def parse_hub_source(source: str) -> HubSource:
    """Parses `hf://org/name[:config][@split]`; the default split is `train`. Raises ValueError."""
    parts = _HUB.fullmatch(source)
    if not parts:
        raise ValueError(
            f"{source}: a hub data set is written hf://org/name, hf://org/name:config or hf://org/name@split"
        )
    return HubSource(parts["name"], parts["config"], parts["split"] or "train")


def fetch(hub: HubSource, home: Home, progress: Progress, *, fetches: bool = True) -> Path:
    """The rows of a hub data set as a JSONL file in the home's cache, fetched on first use.

    `progress` gets rows; the total is 0 if the hub does not tell. The copy is not updated later. Raises ValueError if
    the hub cannot be reached or has no such data set, and without `fetches` if it would have to be asked.
    """
    name = "hub-" + hashlib.sha256(json.dumps([cache.VERSION, *hub]).encode()).hexdigest()[:32]
    made = home.cache / name / "rows.jsonl"
    if not fetches and not made.is_file():
        raise ValueError(f"{hub} is not fetched yet")
    if fetches and not cache.find_entry(home, name):
        with cache.new_entry(home, name) as folder, (folder / "rows.jsonl").open("wb") as file:
            for row in _stream_rows(hub, progress):
                file.write(row + b"\n")
    return made


def is_tokenised(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder and its rows are tokens, of any kind (see
    `token_rows.COLUMNS`)."""
    from engine.prep.token_rows import COLUMNS

    info = path / "dataset_info.json"
    if not (path / "state.json").is_file() or not info.is_file():
        return False
    try:
        features = json.loads(info.read_text(encoding="utf-8")).get("features") or {}
    except (ValueError, AttributeError):
        return False
    return any(set(columns) <= set(features) for columns in COLUMNS.values())


# ── folders and globs ──────────────────────────────────────────────────────────────────────────────────────────────


def _search_folders(directory: Path) -> tuple[Path, Path]:
    return directory, find_bundled("data")


def _check_one_split(folder: Path, source: str) -> None:
    """Raises ValueError for a folder that `datasets.DatasetDict.save_to_disk` wrote: its test rows would be trained
    on."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(f"{source}/{path.parent.name}" for path in sorted(folder.glob("*/state.json")))
        raise ValueError(f"{source} holds several splits; name one of them: {splits or 'it has none'}")


def _list_below(folder: Path, source: str) -> list[Path]:
    found = list(_drop_repeated(_walk_readable(folder)))
    if not found:
        seen = Counter(path.suffix.lower() or "no suffix" for path in folder.rglob("*") if path.is_file())
        kinds = ", ".join(f"{count} × {suffix}" for suffix, count in seen.most_common(5)) or "nothing at all"
        raise ValueError(
            f"{source} is a folder without a file that can be read ({kinds}); known are {', '.join(KINDS)}"
        )
    return found


def _walk_readable(folder: Path) -> Iterator[Path]:
    """Readable files below a folder, sorted; follows links. Raises ValueError for a broken link with a readable
    name."""
    entered: set[tuple[int, int]] = set()
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:  # a link to a folder whose files are listed already
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # Sorted, so that every machine takes the same of two ways to a folder; hidden folders are caches and
        # repositories.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".") and _is_rows(name)]
    for path in sorted(found):
        if not path.exists():
            raise ValueError(f"{path} is a broken link: remove or repair it")
        if path.is_file():
            yield path


def _is_rows(name: str) -> bool:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _BESIDE):
        return False
    try:
        readers.check_suffix(Path(name))
    except ValueError:
        return False
    return True


def _match_glob(pattern: str, directory: Path) -> list[Path]:
    """The files that a glob matches. Raises ValueError if there are none, or if one cannot be read."""
    expanded = str(Path(pattern).expanduser())
    for folder in _search_folders(directory):
        # Path.glob does not accept absolute patterns.
        paths = [folder / each for each in glob.iglob(expanded, root_dir=folder, recursive=True)]  # noqa: PTH207
        found = list(_drop_repeated(sorted(path for path in paths if path.is_file())))
        if found:
            for path in found:
                readers.find_kind(path)
            return found
    parent = Path(expanded).parent
    raise ValueError(
        f"nothing matches {pattern} beside the profile ({directory}){_describe_folder(directory / parent)}"
    )


def _drop_repeated(paths: Iterator[Path] | list[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        real = path.resolve()
        if real not in seen:
            seen.add(real)
            yield Path(os.path.abspath(path))


def _describe_folder(folder: Path) -> str:
    """For a message: what the folder contains instead."""
    if _WILD.search(str(folder)):
        return ""
    if not folder.is_dir():
        return f": there is no folder {folder}"
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return (
        f": the folder holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        if names
        else ": the folder is empty"
    )


def _suggest_source(source: str, directory: Path) -> str:
    """For a message: a similar name that exists."""
    beside = (directory / source).parent
    try:
        names = [str(Path(source).parent / path.name) for path in sorted(beside.iterdir()) if path.name[0] != "."]
    except OSError:
        names = []
    names += [str(path.relative_to(find_bundled("data"))) for path in sorted(find_bundled("data").rglob("*.jsonl"))]
    return did_you_mean(source, names)


# ── the hub ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stream_rows(hub: HubSource, progress: Progress) -> Iterator[bytes]:
    """The rows as JSON, streamed."""
    import datasets

    written = f"{HUB}{hub.name}{':' + hub.config if hub.config else ''}@{hub.split}"
    try:
        rows = datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True)
        split = (rows.info.splits or {}).get(hub.split)
        total = split.num_examples if split else 0
        for number, row in enumerate(rows, 1):
            yield _encode_row(row, number)
            progress("fetching", number, total)
    except Exception as error:
        raise ValueError(
            f"{written} cannot be fetched: {error}; is the name right, "
            "and can this machine reach the hub (HF_ENDPOINT, HF_TOKEN)?"
        ) from error


def _encode_row(row: dict[str, object], number: int) -> bytes:
    try:
        # `datasets` gives all rows the same keys at any depth, and fills those that a row does not have with null.
        return msgspec.json.encode({name: drop_nulls(value) for name, value in row.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {number} has a value that is neither text nor a number: {error}")
