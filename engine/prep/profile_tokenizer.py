"""Trains a profile's own tokenizer on its training rows, and keeps it in the cache.

    cache/tokenizer-HASH/   what `AutoTokenizer` loads, and `training.json`: how it was trained

The hash covers the rows' sources, everything that was done to the rows, and the tokenizer's options. The folder appears
only when it is complete, and the same rows and options give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from engine.config.profile import Profile
from engine.options.tokenizer import TokenizerOptions
from engine.prep.base_model import Progress, find_template
from engine.prep.formats.canonical import all_text
from engine.prep.stages import row_files
from engine.prep.tokenizer_training import RECORD, list_notes, train
from engine.protocol.home import Home
from engine.storage import cache

_TOLD = 500
"""Rows between two progress reports."""


def list_files(profile: Profile) -> dict[str, Path]:
    """Role -> file, for the chat template's file; empty if the template is ChatML. Raises ProblemError."""
    named = _options(profile).chat_template or (None if profile.data.template == "auto" else profile.data.template)
    return {"template": find_template(named, profile.directory)} if named else {}


def folder_of(profile: Profile, digests: Mapping[str, str], settings: Mapping[str, Any], home: Home) -> Path:
    """The tokenizer's folder, whether it is trained yet or not. `digests` cover the rows' files and the template,
    `settings` what is done to the rows."""
    made_of = {"rows": settings, "tokenizer": _options(profile).model_dump(exclude={"chat_template"})}
    return home.cache / f"tokenizer-{cache.entry_name(digests, made_of)}"


def make(profile: Profile, rows: Path, folder: Path, home: Home, progress: Progress) -> None:
    """Train on a file of placed canonical rows. `progress` gets (phase, rows done, rows in all). Raises ValueError,
    ProblemError."""
    options, template = _options(profile), list_files(profile).get("template")
    texts = _Sample(rows, options, progress)
    tokenizer = train(
        texts,
        kind=options.kind,
        size=options.vocab_size,
        special=options.special_tokens,
        template=template.read_text(encoding="utf-8") if template else None,
        byte_fallback=options.byte_fallback,
    )
    record = {
        "size": len(tokenizer),
        "kind": options.kind,
        "samples": len(texts.numbers),
        "notes": list_notes(tokenizer, options.vocab_size, "model.tokenizer.special_tokens"),
    }
    with cache.new_entry(home, folder.name) as draft:
        tokenizer.save_pretrained(draft)
        (draft / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """How the tokenizer was trained: `size`, `kind`, `samples`, and `notes` for the user."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
    return record


def _options(profile: Profile) -> TokenizerOptions:
    options = profile.model.tokenizer
    assert isinstance(options, TokenizerOptions)
    return options


class _Sample:
    """The texts of a seeded sample of rows; can be iterated more than once."""

    def __init__(self, rows: Path, options: TokenizerOptions, progress: Progress) -> None:
        self._rows, self._progress = rows, progress
        with rows.open("rb") as file:
            count = sum(1 for _ in file)
        self.numbers = set(Random(options.seed).sample(range(count), min(count, options.samples)))

    def __iter__(self) -> Iterator[str]:
        taken = 0
        for number, row in enumerate(row_files.read_file(self._rows)):
            if number in self.numbers:
                taken += 1
                if taken % _TOLD == 0 or taken == len(self.numbers):
                    self._progress("learning a vocabulary", taken, len(self.numbers))
                yield all_text(row.row())
