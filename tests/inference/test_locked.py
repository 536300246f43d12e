"""A checkpoint whose template, tokens or stop tokens are no longer those of its training is refused wherever it is
used, in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation.request import EvaluationRequest
from engine.evaluation.run import evaluate
from engine.export.request import ExportRequest
from engine.export.run import export
from engine.inference.loaded_model import load
from engine.models import targets
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.serving.server import TransformersServer
from engine.serving.settings import Settings
from tests.inference.test_export import base, home, trained
from tests.inference.test_merge import settle

assert base and home  # fixtures


class Models:
    def __init__(self, home: Home) -> None:
        self.home = home

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> Any:
        return load(target, home=self.home, dtype=dtype, quantization=quantization)


class Watch:
    def __call__(self, *_: object) -> None:
        pass

    def is_cancelled(self) -> bool:
        return False


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<end>", "<end> "))


def other_tokens(folder: Path) -> None:
    """The same template over a tokenizer that has two words in each other's place."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w2": 6', '"w2": 7').replace('"w3": 7', '"w3": 6'))


def other_stops(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 40]}))


def serve(home: Home) -> None:
    TransformersServer(
        targets.resolve("run", home, home.root), Settings(target="run", port=0), home, lambda *_: None
    ).close(1)


USES: dict[str, Callable[[Home], object]] = {
    "chat": lambda home: load("run", home=home, directory=home.root),
    "evaluation": lambda home: evaluate("run", EvaluationRequest(), home, home.root, Models(home), Watch()),  # type: ignore[arg-type]
    "serve": serve,
    "merge": lambda home: settle(home, "run"),
    "export": lambda home: export(targets.resolve("run", home, home.root), home.root / "out", ExportRequest(), home),
    "adapter": lambda home: export(
        targets.resolve("run", home, home.root), home.root / "out", ExportRequest(adapter_only=True), home
    ),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_refuses_in_the_same_words(home: Home, base: Path, use: str) -> None:
    checkpoint = trained(home, base, "lora", "none", "float32")
    kept = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for change, cause in (
        (other_template, "the chat template is not the one it was trained with"),
        (other_tokens, r"conversation 0 is tokenised differently: at 5 \[7\], trained \[6\]"),
        (other_stops, r"its generation_config\.json stops at \[40\]"),
    ):
        change(checkpoint)
        with pytest.raises(ProblemError, match=rf"step-00000005 no longer matches its tokenizer(.|\n)*{cause}"):
            USES[use](home)
        for path in checkpoint.iterdir():
            path.write_bytes(kept[path]) if path in kept else path.unlink()
    assert not (home.root / "out").exists() and not list(home.cache.iterdir())
    USES[use](home)
