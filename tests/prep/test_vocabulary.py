"""`model.tokenizer` in a profile: a tokenizer trained on the profile's own rows, or another's, before the tokens are
made."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.form import build_schema, list_fields
from engine.config.profile import Profile, ProfileError
from engine.options.tokenizer import TokenizerOptions
from engine.prep import checks
from engine.prep.base_model import locate_base
from engine.prep.prepare import prepare
from engine.prep.tokenizer_training import train
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.workers.prepare import list_warnings
from tests.prep.conftest import ProfileOver, chat
from tests.prep.test_prepare import quiet, rows_of
from tests.training import warm

ROWS = [
    chat(f"What is the capital of country {name}?", f"The capital of {name} is {name}ville.")
    for name in ("Ares", "Boon", "Cress", "Dorn", "Elba", "Farr")
] * 5
SMALL = TokenizerOptions(vocab_size=400)


def over(profile: Profile, tokenizer: TokenizerOptions | str) -> Profile:
    """The profile of a model from its config: `checks.tokenizer` says when that is needed, `prepare` does not ask."""
    return replace(profile, model=profile.model.model_copy(update={"tokenizer": tokenizer}))


def loaded(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokens_are_of_the_tokenizer_that_was_trained(home: Home, profile_over: ProfileOver, kind: Any) -> None:
    told: list[tuple[str, int, int]] = []
    profile = over(profile_over(ROWS, ROWS[:2]), SMALL.model_copy(update={"kind": kind}))
    prepared = prepare(profile, home, lambda *each: told.append(each))
    tokenizer = loaded(prepared["tokenizer"])
    assert len(tokenizer) == prepared["vocabulary"]["size"] <= 400 and prepared["vocabulary"]["samples"] == 30
    first = rows_of(prepared["train"])["input_ids"][0]
    assert first == tokenizer.apply_chat_template(ROWS[0]["messages"], return_dict=False)
    assert prepared["lock"]["eos_token_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert prepared["base"] == str(home.models / "smollm2-135m-instruct") and prepared["template"] is None
    assert ("learning a vocabulary", 30, 30) in told
    notes = prepared["vocabulary"]["notes"]
    assert [remark.message for remark in list_warnings(prepared)] == [
        f"the trained tokenizer: {note}" for note in notes
    ]


def test_it_is_trained_once_for_the_same_rows(home: Home, profile_over: ProfileOver) -> None:
    def trained(options: TokenizerOptions = SMALL, **data: Any) -> tuple[str, bool]:
        """The tokenizer, and whether it was trained just now."""
        told: list[str] = []
        prepared = prepare(over(profile_over(ROWS, **data), options), home, lambda phase, *_: told.append(phase))
        return prepared["tokenizer"], "learning a vocabulary" in told

    first, now = trained()
    assert now
    assert trained() == trained(max_length=64) == trained(file="renamed.jsonl") == (first, False)
    others = [
        trained(clean={"min_chars": 2}),
        trained(SMALL.model_copy(update={"seed": 7})),
        trained(SMALL.model_copy(update={"vocab_size": 390})),
    ]
    assert all(new for _, new in others) and len({first, *(folder for folder, _ in others)}) == 4
    content = Path(first, "tokenizer.json").read_bytes()
    for path in sorted(Path(first).iterdir()):
        path.unlink()
    Path(first).rmdir()
    assert trained() == (first, True), "a tokenizer that was removed is trained again"
    assert Path(first, "tokenizer.json").read_bytes() == content


def test_held_out_rows_are_not_learnt(home: Home, profile_over: ProfileOver) -> None:
    rare = chat("Zzyzx qwzx zzyzx qwzx", "qwzx zzyzx qwzx zzyzx")
    prepared = prepare(over(profile_over(ROWS, [rare] * 8), SMALL), home, quiet)
    learnt = prepare(over(profile_over([*ROWS, *[rare] * 8]), SMALL), home, quiet)
    assert not any("zyzx" in token for token in loaded(prepared["tokenizer"]).get_vocab())
    assert any("zyzx" in token for token in loaded(learnt["tokenizer"]).get_vocab())


def test_the_profiles_template_is_saved_with_it(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
        "[assistant]{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    options = SMALL.model_copy(update={"special_tokens": ["<|end|>"]})
    by_data = prepare(over(profile_over(ROWS, template="own.jinja"), options), home, quiet)
    own = options.model_copy(update={"chat_template": "own.jinja"})
    by_tokenizer = prepare(over(profile_over(ROWS), own), home, quiet)
    for prepared in (by_data, by_tokenizer):
        tokenizer = loaded(prepared["tokenizer"])
        assert tokenizer.chat_template == template
        assert prepared["lock"]["eos_token_ids"] == [tokenizer.convert_tokens_to_ids("<|end|>")]
    assert by_data["hash"] == by_tokenizer["hash"], "it is one and the same, wherever it was named"


def test_anothers_tokenizer_is_used(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    train(["some words of text"] * 9, size=300).save_pretrained(tmp_path / "mine")
    prepared = prepare(over(profile_over(ROWS, max_length=512), "mine"), home, quiet)
    assert prepared["tokenizer"] == str(tmp_path / "mine") and prepared["vocabulary"] is None
    ids = loaded(prepared["tokenizer"]).apply_chat_template(ROWS[0]["messages"], return_dict=False)
    assert rows_of(prepared["train"])["input_ids"][0] == ids
    assert prepare(profile_over(ROWS), home, quiet)["tokenizer"] is None
    with pytest.raises(ProblemError, match="There is no model 'gone'"):
        prepare(over(profile_over(ROWS), "gone"), home, quiet)


def test_a_base_needs_neither_weights_nor_a_tokenizer_then(
    home: Home, profile_over: ProfileOver, tmp_path: Path, smollm2: Path
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((smollm2 / "config.json").read_bytes())
    profile = profile_over(ROWS)
    bare = replace(profile, model=profile.model.model_copy(update={"base": "bare", "tokenizer": SMALL}))
    prepared = prepare(bare, home, quiet)
    assert prepared["base"] == str(tmp_path / "bare") and Path(prepared["tokenizer"]).is_dir()
    with pytest.raises(ProblemError, match="bare has no tokenizer"):
        prepare(replace(bare, model=bare.model.model_copy(update={"tokenizer": None})), home, quiet)
    with pytest.raises(ProblemError, match="not trained yet"):
        locate_base(bare, home, quiet)


def test_tokens_teach_no_tokenizer(home: Home, profile_over: ProfileOver) -> None:
    tokens = prepare(profile_over(ROWS), home, quiet)["train"]
    with pytest.raises(ProblemError, match=r"model\.tokenizer is trained on rows"):
        prepare(over(profile_over([], train=[{"source": tokens}]), SMALL), home, quiet)


KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from engine.prep.prepare import prepare
from engine.options.tokenizer import TokenizerOptions
from engine.protocol.home import Home
from engine.config.profile import load
home = Home(Path(sys.argv[1]))
profile = load(Path(sys.argv[2]), home=home)
profile = replace(profile, model=profile.model.model_copy(update={"tokenizer": TokenizerOptions(vocab_size=400)}))
def progress(phase, done, total):
    if phase == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(profile, home, progress)
"""


@pytest.mark.slow
def test_killed_while_it_learns_it_goes_on(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    profile = profile_over(ROWS, dedup={})
    (tmp_path / "profile.yaml").write_text(profile.to_yaml())
    command = ["tests.program", KILLED, str(home.root), str(tmp_path / "profile.yaml")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for phase in ("learning a vocabulary", "tokenising"):
        assert warm.start([*command, phase], 1, environment, tmp_path / "log").wait() == -signal.SIGKILL
    prepared = prepare(over(profile, SMALL), home, quiet)
    other = Home(tmp_path / "other").create()
    (other.models / "smollm2-135m-instruct").symlink_to((home.models / "smollm2-135m-instruct").resolve())
    whole = prepare(over(profile, SMALL), other, quiet)
    assert Path(prepared["tokenizer"]).name == Path(whole["tokenizer"]).name and prepared["hash"] == whole["hash"]
    for name in ("tokenizer.json", "tokenizer_config.json", "training.json"):
        assert Path(prepared["tokenizer"], name).read_bytes() == Path(whole["tokenizer"], name).read_bytes()
    assert rows_of(prepared["train"])["input_ids"] == rows_of(whole["train"])["input_ids"]
    hidden = [path for path in home.cache.glob(".*") if not path.name.startswith(".checked-")]
    assert not hidden and not list(home.cache.glob("work-*"))


# ── what a profile may say ─────────────────────────────────────────────────────────────────────────────────────────

SAID: dict[str, tuple[Any, str]] = {
    "not from a config": ("smollm2-135m-instruct", "model.tokenizer: needs model.init config"),
    "an unknown key": ({"vocab_siz": 500}, "model.tokenizer.vocab_siz: unknown key, did you mean vocab_size?"),
    "an unknown kind": ({"kind": "bp"}, "model.tokenizer.kind: must be bpe or unigram, not 'bp', did you mean bpe?"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_wrong_with_a_profile_is_named(profile_over: ProfileOver, case: str) -> None:
    said, message = SAID[case]
    with pytest.raises(ProfileError) as refused:
        profile_over(ROWS, None, f"model.tokenizer={json.dumps(said)}")
    assert message in str(refused.value)


CHECKED: dict[str, tuple[Any, str, str]] = {
    "nowhere": ("gone", "model.tokenizer", "There is no model 'gone'"),
    "too small": (TokenizerOptions(vocab_size=200), "model.tokenizer.vocab_size", "must be at least 259"),
    "a blank": (TokenizerOptions(special_tokens=[" "]), "model.tokenizer.special_tokens", "empty"),
    "no template": (
        TokenizerOptions(chat_template="no.jinja"),
        "model.tokenizer.chat_template",
        "there is no no.jinja",
    ),
}


@pytest.mark.parametrize("case", CHECKED)
def test_a_tokenizer_that_cannot_be_is_refused(bare_home: Home, tmp_path: Path, case: str) -> None:
    tokenizer, key, message = CHECKED[case]
    sections = {
        "model": SimpleNamespace(init="config", base="b", tokenizer=tokenizer),
        "data": SimpleNamespace(template="auto"),
    }
    ((found, told),) = checks.check_tokenizer(sections, tmp_path, bare_home)
    assert found == key and message in told


def test_two_templates_are_refused_and_a_folder_of_ones_own_is_not(bare_home: Home, tmp_path: Path) -> None:
    data = SimpleNamespace(template="one.jinja")
    twice = SimpleNamespace(init="config", base="b", tokenizer=TokenizerOptions(chat_template="two.jinja"))
    ((key, told),) = checks.check_tokenizer({"model": twice, "data": data}, tmp_path, bare_home)
    assert key == "model.tokenizer.chat_template" and "leave one of them out" in told
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.json").write_text("{}")
    fine = SimpleNamespace(init="config", base="b", tokenizer="mine")
    assert list(checks.check_tokenizer({"model": fine, "data": data}, tmp_path, bare_home)) == []


def test_form_and_schema_show_it() -> None:
    (field,) = [each for each in list_fields() if each.key == "model.tokenizer"]
    assert (field.kind, field.optional, field.default) == ("text", True, None)
    written = build_schema()
    kinds = written["properties"]["model"]["properties"]["tokenizer"]["anyOf"]
    assert kinds == [{"type": "string"}, {"$ref": "#/$defs/TokenizerOptions"}, {"type": "null"}]
    assert written["$defs"]["TokenizerOptions"]["properties"]["vocab_size"]["default"] == 15_000


def test_the_screen_shows_tokens_of_it_once_it_is_trained(home: Home, profile_over: ProfileOver) -> None:
    from engine.prep.browse import Browser

    profile = over(profile_over(ROWS), SMALL)
    browser = Browser(profile, home, quiet)
    with pytest.raises(ProblemError, match="prepare the data first"):
        browser.tokenizer()
    browser.use_tokenizer(Path(prepare(profile, home, quiet)["tokenizer"]))
    assert len(browser.tokenizer()) <= 400


def test_a_profile_that_starts_from_a_config_may_say_it(home: Home, profile_over: ProfileOver) -> None:
    wish = "model.tokenizer={kind: unigram, vocab_size: 400}"
    profile = profile_over(ROWS, None, "model.init=config", "method.kind=pretrain", "adapter.kind=none", wish)
    assert profile.model.tokenizer == TokenizerOptions(kind="unigram", vocab_size=400)
    assert "vocab_size: 400" in profile.to_yaml()
