"""Brings a catalogue up to date with the sources, and compiles it.

    python -m cockpit.language.catalogue            messages that are new stand there without a translation
    python -m cockpit.language.catalogue --check    say what is missing, and change nothing

Needs Babel, which is in the `dev` extra.
"""

from __future__ import annotations

import argparse
import io
import string
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from cockpit.language.extract import Message, find_messages
from cockpit.language.loaded_catalogue import DOMAIN, FOLDER
from cockpit.language.translate import LANGUAGES

WIDTH = 100
PLURAL = "plural"
"""The field for an English plural's ending, which other languages leave out."""
SINCE = datetime(2026, 11, 30, tzinfo=UTC)
"""The date in the header: a new one at each change would only make differences."""


def path_of(language: str, kind: str) -> Path:
    """The catalogue of a language: `po`, which people edit, or `mo`, which the program reads."""
    return FOLDER / language / "LC_MESSAGES" / f"{DOMAIN}.{kind}"


def read_catalogue(language: str) -> Catalog:
    """The catalogue as it is; an empty one where there is none."""
    path = path_of(language, "po")
    if not path.exists():
        return Catalog(language)
    with path.open("rb") as file:
        return read_po(file, locale=language)


def update(before: Catalog, messages: Iterable[Message]) -> Catalog:
    """A catalogue of exactly these messages, with the translations that there are."""
    after = Catalog(
        before.locale,
        project=DOMAIN,
        version="1",
        header_comment=f"# The texts of {DOMAIN}, by hand; `python -m cockpit.language.catalogue` adds new ones.",
        creation_date=SINCE,
        revision_date=SINCE,
        last_translator="",
        language_team="",
        msgid_bugs_address="",
        fuzzy=False,
    )
    for text, context, (file, _) in messages:
        known = before.get(text, context or None)
        after.add(text, known.string if known else "", locations=[(file, 1)], context=context or None)
    return after


def find_faults(catalogue: Catalog, messages: Iterable[Message]) -> Iterator[str]:
    """What is wrong with a catalogue: messages that it lacks, or has no translation or wrong fields for, and those that
    no source has any more."""
    wanted = {(message.context or None, message.text): message for message in messages}
    for (context, text), message in wanted.items():
        known = catalogue.get(text, context)
        place = message.place[0]
        if known is None:
            yield f"{place}: not in the catalogue: {text!r}"
        elif not known.string:
            yield f"{place}: not translated: {text!r}"
        elif context is None and fields_of(text) != fields_of(str(known.string)):
            yield f"{place}: the translation has other fields: {text!r}: {known.string!r}"
    for known in catalogue:
        if known.id and (known.context, known.id) not in wanted:
            yield f"no source says this any more: {known.id!r}"


def fields_of(text: str) -> set[str]:
    """The names of the fields of a format string, but for those of plurals; none where it is no format string."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text)}
        return {name for name in names if name is not None and not name.startswith(PLURAL)}
    except ValueError:
        return set()


def compiled(catalogue: Catalog) -> bytes:
    """The catalogue as the program reads it."""
    file = io.BytesIO()
    write_mo(file, catalogue)
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is missing, and change nothing")
    options = parser.parse_args(arguments)
    messages, status = find_messages(), 0
    for language in LANGUAGES:
        if language == "en":
            continue
        catalogue = read_catalogue(language)
        if not options.check:
            catalogue = update(catalogue, messages)
            path_of(language, "po").parent.mkdir(parents=True, exist_ok=True)
            with path_of(language, "po").open("wb") as file:
                write_po(file, catalogue, width=WIDTH, omit_header=False, include_lineno=False)
            path_of(language, "mo").write_bytes(compiled(catalogue))
        for fault in find_faults(catalogue, messages):
            print(f"{language}: {fault}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
