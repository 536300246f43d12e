"""A tokenizer with several chat templates by name is used as one with a single template: `default` is its template, and
the others go wherever the tokenizer goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.evaluation import likelihood
from engine.inference.detokenizer import thinking_marks
from engine.inference.loaded_model import _digest, load
from engine.inference.replies import clean_reply
from engine.inference.sampling import Sampling
from engine.models import merge, template_metadata
from engine.models.targets import Target
from engine.prep import pin_base
from engine.protocol.home import Home
from engine.storage import cache
from engine.training.hot_chat import _encode_prompt
from engine.workers.doctor import check_folder
from tests.training.harness import make_model

DEFAULT = (
    "{#- own. replies: chatglm2; thinking: <<< >>> -#}"
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
)
TOOLS = "{#- tools. thinking: ((( ))) -#}{{ tools | tojson }}"


@pytest.fixture(params=["in tokenizer_config.json", "in files of their own"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model whose tokenizer has two templates, in both layouts that hubs hold."""
    from transformers import AutoTokenizer

    made = make_model(tmp_path / "model")
    if request.param == "in files of their own":
        tokenizer = AutoTokenizer.from_pretrained(made)
        tokenizer.chat_template = {"default": DEFAULT, "tool_use": TOOLS}
        tokenizer.save_pretrained(made)
        assert (made / "additional_chat_templates" / "tool_use.jinja").is_file()
        return made
    (made / "chat_template.jinja").unlink(missing_ok=True)
    path = made / "tokenizer_config.json"
    named = [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOLS}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    return made


def test_it_is_read_everywhere_as_its_default(folder: Path, tmp_path: Path) -> None:
    loaded = load(str(folder), home=Home(tmp_path / "home").create(), device="cpu")
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer.chat_template, dict) and loaded.templated
    assert thinking_marks(tokenizer) == ("<<<", ">>>")
    assert template_metadata.choose_template(template_metadata.read_template(folder)) == DEFAULT
    assert clean_reply(tokenizer, " [[训练时间]] ") == "2023年"
    assert template_metadata.takes_tools(tokenizer.chat_template)
    assert likelihood.can_render([{"messages": []}], tokenizer)
    chat: Any = [{"role": "user", "content": "w1"}]
    assert _encode_prompt(tokenizer, chat) == loaded.prompt(chat) == [2, 5, 1]
    assert loaded.chat("w1", Sampling(3)).tokens > 0
    assert {check.name: check.ok for check in check_folder(folder)} == dict.fromkeys(
        ("files", "tokenizer", "template"), True
    )


@pytest.mark.parametrize("template", [None, "", {}, {"tool_use": TOOLS}])
def test_none_is_a_default(template: Any) -> None:
    assert template_metadata.choose_template(template) == ""
    assert not likelihood.can_render([{"messages": []}], SimpleNamespace(chat_template=template))


def test_its_further_templates_go_where_it_goes(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(folder).chat_template
    target = Target(base=str(folder), label="m")
    merged, linked = tmp_path / "merged", tmp_path / "linked"
    for place in (merged, linked):
        place.mkdir()
    merge.write_tokenizer(target, merged)
    pin_base._link(pin_base._list_files("", folder), linked, lambda _: None)
    for place in (merged, linked):
        assert AutoTokenizer.from_pretrained(place).chat_template == expected


def test_a_change_of_any_of_them_is_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    def identify(place: Path) -> tuple[str, str]:
        return _digest(place), cache.entry_key(cache.tokenizer_files(place), {}, lambda _: None)

    before = identify(folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert identify(other) == before
    for path in (other / "tokenizer_config.json", other / "additional_chat_templates" / "tool_use.jinja"):
        if path.is_file():
            path.write_text(path.read_text().replace("tools. ", "others. "))
    now = identify(other)
    assert now[0] != before[0] and now[1] != before[1]
