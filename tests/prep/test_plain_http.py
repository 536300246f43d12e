"""A service on another machine over plain HTTP is warned of: the key and the rows can be read on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.profile import list_notes, load
from engine.llm_api.client import describe_plain_http
from engine.options.data import ExpandOptions
from engine.options.evaluation import JudgeOptions
from engine.protocol.home import Home

PROFILE = """
model: {{base: smollm2-135m-instruct}}
data:
  train: [{{source: triples/train.jsonl}}]
  expand: {{base_url: "{url}", samples: 5}}
evaluation:
  judge: {{base_url: "{url}"}}
"""


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://api.example.com/v1", True),
        ("HTTP://10.0.0.7:8000/v1", True),
        ("http://[2001:db8::1]/v1", True),
        ("http://localhost.example.com", True),
        ("https://api.example.com", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_only_a_remote_address_without_encryption(url: str, warned: bool, tmp_path: Path) -> None:
    for options in (ExpandOptions(base_url=url, samples=5), JudgeOptions(base_url=url)):
        assert bool(describe_plain_http(options)) == warned
        assert not warned or "DEEPSEEK_API_KEY" in describe_plain_http(options)
    path = tmp_path / "p.yaml"
    path.write_text(PROFILE.format(url=url))
    home = Home(tmp_path / "home")
    notes = [note for note in list_notes(load(path, home=home), home) if "unencrypted" in note]
    assert [note.partition(".")[0] for note in notes] == (["expand", "judge"] if warned else [])
