"""A tokenizer, and profiles over small files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import Profile, parse
from engine.protocol.home import Home


@pytest.fixture
def home(bare_home: Home, light: Path) -> Home:
    """A COCKPIT_HOME that holds the embedded model, whose tokenizer is loaded soon."""
    (bare_home.models / light.name).symlink_to(light)
    return bare_home


@pytest.fixture(scope="session")
def tokenizer(light: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(light)


def chat(*contents: str, system: str = "") -> dict[str, Any]:
    """A conversation of alternating user and assistant turns."""
    turns = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant") * len(contents), contents, strict=False)
    ]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; a str is written as the line that it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


ProfileOver = Callable[..., Profile]


@pytest.fixture
def profile_over(home: Home, tmp_path: Path) -> ProfileOver:
    """`profile_over(rows, **data)`: a profile that trains on these rows; `data` are further keys of its data
    section."""

    def make(
        rows: list[Any], validation: list[Any] | None = None, *overrides: str, file: str = "rows.jsonl", **data: Any
    ) -> Profile:
        section = {"train": [{"source": write(tmp_path / file, *rows).name}], "max_length": 128, **data}
        if validation is not None:
            section["validation"] = [{"source": write(tmp_path / f"held-{file}", *validation).name}]
        return parse(json.dumps({"data": section}), "test.json", tmp_path, overrides, home)

    return make
