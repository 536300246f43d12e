"""The user's own words about a run: tags, a note, a pin and a group, in `labels.json` of its directory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engine.protocol.home import RunDirectory, write_private
from engine.protocol.messages import Label, Problem, ProblemError, Run
from engine.protocol.terminal import show_controls

LARGEST_TAG, MOST_TAGS, LARGEST_NOTE = 40, 50, 4000
"""Characters of a tag, tags of a run, characters of a note: they travel with every summary of the run."""


class Labels(msgspec.Struct, kw_only=True):
    """The content of the file."""

    tags: list[str] = []
    note: str = ""
    pinned: bool = False
    group: str = ""


def load(directory: RunDirectory) -> Labels:
    """The labels on disk. Raises OSError and MsgspecError."""
    try:
        return msgspec.json.decode(directory.labels.read_bytes(), type=Labels)
    except FileNotFoundError:
        return Labels()


def save(directory: RunDirectory, labels: Labels) -> None:
    """Write the labels; without any there is no file. Raises OSError."""
    if labels == Labels():
        directory.labels.unlink(missing_ok=True)
    else:
        write_private(directory.labels, msgspec.json.format(msgspec.json.encode(labels)) + b"\n")


def read(directory: RunDirectory, run: Run, warn: Callable[[str], object]) -> None:
    """Put the labels of the run in `directory` into its summary. A damaged file is told of."""
    labels = Labels()
    try:
        labels = load(directory)
    except (OSError, msgspec.MsgspecError) as error:
        warn(f"labels.json cannot be read ({error})")
    run.tags, run.note, run.pinned = list(dict.fromkeys(labels.tags)), labels.note, labels.pinned
    run.group = labels.group


def change(directory: RunDirectory, run: Run, message: Label) -> None:
    """Change the labels on disk and in the summary. Raises ProblemError, and changes nothing then.

    The engine of another host may have changed them meanwhile. A damaged file is kept as `labels.json.damaged`.
    """
    damaged = False
    try:
        before = load(directory)
    except msgspec.MsgspecError:
        before, damaged = Labels(), True
    except OSError as error:
        raise _failure(directory, error)
    for tag in message.add:
        if not _is_word(tag):
            raise _refusal(f"{tag!r} cannot be a tag", f"a tag is one word of at most {LARGEST_TAG} characters")
    check_group(message.group or "")
    removed = set(message.remove)
    tags = [tag for tag in dict.fromkeys([*before.tags, *message.add]) if tag not in removed]
    if len(tags) > MOST_TAGS:
        raise _refusal(f"{run.id} would have {len(tags)} tags", f"a run has at most {MOST_TAGS}: remove some")
    note = before.note if message.note is None else message.note.strip()
    if len(note) > LARGEST_NOTE:
        raise _refusal("The note is too long", f"it has {len(note):,} characters, and {LARGEST_NOTE:,} are kept")
    pinned = before.pinned if message.pinned is None else message.pinned
    group = before.group if message.group is None else message.group
    try:
        if damaged:
            directory.labels.replace(directory.labels.with_name(f"{directory.labels.name}.damaged"))
        save(directory, Labels(tags=tags, note=note, pinned=pinned, group=group))
    except OSError as error:
        raise _failure(directory, error)
    run.tags, run.note, run.pinned, run.group = tags, note, pinned, group


def check_group(name: str) -> None:
    """Raises ProblemError for what cannot be the name of a group."""
    if name and not _is_word(name):
        hint = f"a group's name is one word of at most {LARGEST_TAG} characters, without a comma"
        raise _refusal(f"{name!r} cannot be a group", hint)


def _is_word(text: str) -> bool:
    return 0 < len(text) <= LARGEST_TAG and "," not in text and text.split() == [text] and show_controls(text) == text


def _failure(directory: RunDirectory, error: OSError) -> ProblemError:
    return ProblemError(
        Problem(
            code="file.unwritable",
            title="The labels could not be saved",
            cause=f"{directory.labels}: {error.strerror}",
            hint="free some disk space, or check the permissions of the run's directory",
        )
    )


def _refusal(title: str, hint: str) -> ProblemError:
    return ProblemError(Problem(code="request.invalid", title=title, hint=hint))
