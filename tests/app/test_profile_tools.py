"""The form's groups, search and lists of sources; completions; differences; the user's own editor."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cockpit.profiles.differences import UNSET, compare, find_parent, mark_copy
from cockpit.profiles.yaml_edit import clear_value, read_yaml, set_value, to_flow_yaml, value_at
from cockpit.screens.profile import ProfileScreen
from cockpit.widgets.completion import complete_path, complete_word, complete_yaml
from cockpit.widgets.form import Form
from cockpit.widgets.sources_dialog import SourcesDialog
from engine.config.bundled import find_bundled
from engine.config.form import list_fields
from engine.protocol.home import Home
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

TEXTS = (
    "",
    "data:\n  train: a\n",
    "data: {train: a}\n",
    "data:\n  train: a\n  clean: null   # c\n",
    "data:\n  clean: {unicode: true}\n  train: a # x\n",
    "data:\n  clean:\n    unicode: true # u\n    blanks: false\n  train: a\n",
    "data:\n  clean: {}\n",
    "data:\n  clean:\n  train: b\n",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("key", "value"), [("data.clean.min_chars", 5), ("data.expand.price.input", 0.5)])
def test_a_setting_in_a_group_is_written_and_taken_back(text: str, key: str, value: float) -> None:
    before = read_yaml(text)
    changed = set_value(text, key, str(value))
    assert value_at(read_yaml(changed), key) == value
    for name, section in before.items():
        for other, given in section.items():
            if given and not key.startswith(f"{name}.{other}"):
                assert read_yaml(changed)[name][other] == given
    with pytest.raises(KeyError):
        value_at(read_yaml(clear_value(changed, key)), key)


@pytest.mark.parametrize(
    "text", ["data:\n  clean:\n    unicode: false\n  train: a\n", "data: {clean: {unicode: false}}"]
)
def test_a_group_that_loses_its_last_setting_stays_on(text: str) -> None:
    assert read_yaml(clear_value(text, "data.clean.unicode"))["data"]["clean"] == {}


def test_every_group_of_the_profile_unfolds_into_its_own_fields() -> None:
    fields = {field.key: field for field in list_fields()}
    groups = {key for key, field in fields.items() if field.kind == "group"}
    assert {"data.clean", "data.dedup", "data.split", "data.expand.price", "training.ema"} <= groups
    assert all(any(field.group == group for field in fields.values()) for group in groups)
    assert fields["data.clean.boilerplate"].kind == "list" and fields["data.train"].kind == "sources"
    assert fields["data.split.validation"].help.startswith("Share of rows")


def test_words_paths_and_yaml_are_completed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").touch()
    assert complete_path("ro", tmp_path) == "rows/" and complete_path("rows/tr", tmp_path) == "rows/train.jsonl"
    assert complete_path("x", tmp_path) == complete_path("", tmp_path) == complete_path("~nobody/x", tmp_path) == ""
    assert not any(complete_path(typed, tmp_path) for typed in (".", "..", "~", "rows/.", "rows/.."))
    assert complete_path("./ro", tmp_path) == "./rows/"
    assert complete_word("{source: a, for", ("source", "format")) == "{source: a, format"
    keys = {"data.max_length": (), "data.clean.unicode": ("true", "false"), "model.dtype": ("bfloat16", "float32")}
    assert complete_yaml(["da"], 0, keys) == "ta: "
    assert complete_yaml(["data:", "  ma"], 1, keys) == "x_length: "
    assert complete_yaml(["data:", "  clean:", "    # one", "    uni"], 3, keys) == "code: "
    assert complete_yaml(["data:", "  clean:", "    unicode: t"], 2, keys) == "rue"
    assert complete_yaml(["model:", "  dtype: f"], 1, keys) == "loat32"
    assert complete_yaml(["model:", "  dtype: float32", ""], 2, keys) == complete_yaml(["x: ["], 0, keys) == ""


def test_differences_name_the_settings_on_both_sides() -> None:
    theirs, ours = "a: {x: 1, y: {z: 2}}\nb: 3\n", "# copied from base\na: {x: 1, y: {z: 4}, n: [1]}\n"
    assert compare(theirs, ours) == [("a.y.z", "2", "4"), ("a.n", UNSET, "[1]"), ("b", "3", UNSET)]
    assert find_parent(ours) == "base" and mark_copy(ours, "other") == ours and find_parent(theirs) == ""
    assert mark_copy(theirs, "base") == f"# copied from base\n{theirs}"


def test_values_of_every_kind_of_yaml_are_shown_on_one_line() -> None:
    text = (
        "a: 2024-01-01\nb: 2024-01-01 10:00:00\nc: !!binary aGk=\nd: !!set {x}\n? [1, 2]\n: .nan\ne: {2024-01-01: 1}\n"
    )
    shown = [to_flow_yaml(value) for value in read_yaml(text).values()]
    assert shown[0] == "2024-01-01" and not any("\n" in line for line in shown)
    assert len(compare(text, "a: 1\n")) == 6


@pytest.fixture
def own(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home").create()
    folder = home.root / "profiles"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "a"}\n' * 3)
    (folder / "mine.yaml").write_text("model: {dtype: float32}\ndata:\n  train: rows.jsonl\n")
    return home


def lines(form: Form) -> list[str]:
    return [str(form._row(key)) for key in form._listed]


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_groups_unfold_the_search_narrows_and_sources_have_an_editor(size: tuple[int, int], own: Home) -> None:
    async with run_app(FakeEngine(), size, home=own, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.file is not None and screen.file.name == "mine" and screen.form.fields)
        form = screen.form
        assert "data.clean" in form._listed and "data.clean.unicode" not in form._listed
        form.settings.focus()
        await pilot.press("slash", *"mojibake")
        await until(pilot, lambda: form._listed == ["data.clean.unicode"])
        assert_fits(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: len(form._listed) > 50)
        form.settings.highlighted = form.settings.get_option_index("data.clean")
        await pilot.press("enter")
        await until(pilot, lambda: "data.clean.unicode" in form._listed)
        form.settings.highlighted = form.settings.get_option_index("data.clean.unicode")
        await pilot.press("enter")
        await until(pilot, lambda: read_yaml(screen.editor.text)["data"].get("clean") == {"unicode": False})
        form.settings.highlighted = form.settings.get_option_index("data.train")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, SourcesDialog))
        await pilot.press("a", *"{source: rows.jsonl, weight: 2}", "enter", "K", "y")
        expected = [{"source": "rows.jsonl", "weight": 2}, "rows.jsonl"]
        await until(pilot, lambda: read_yaml(screen.editor.text)["data"]["train"] == expected)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, SourcesDialog))
        await pilot.press("a", *"*.txt", "enter", "y")
        await until(pilot, lambda: read_yaml(screen.editor.text)["data"]["train"] == [*expected, "*.txt"])
        listed = lines(form)
        screen.editor.load_text("model: {dtype: [")
        await until(pilot, lambda: screen.result is not None and screen.result.issues)
        assert lines(form) == listed, "text that is no YAML empties the form"


async def test_differences_to_a_copy_and_to_the_profile_of_that_name(own: Home) -> None:
    name = "triples-pipeline"
    (own.root / "profiles" / f"{name}.yaml").write_text((find_bundled("profiles") / f"{name}.yaml").read_text())
    async with run_app(FakeEngine(), home=own, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.file is not None and screen.file.name == "mine" and screen.form.fields)
        await pilot.press("f3", *name)
        await until(pilot, lambda: f"{name} home" in screen_text(pilot) and f"{name} built-in" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: f"mine beside {name} built-in" in screen_text(pilot))


async def test_the_form_shows_no_settings_of_another_file(own: Home) -> None:
    (own.root / "profiles" / "torn.yaml").write_text("model: {dtype: [\ndata:\n  train: a\n")
    async with run_app(FakeEngine(), home=own, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.form.document.get("model") == {"dtype": "float32"})
        screen.open(next(file for file in screen.files if file.name == "torn"))
        await until(pilot, lambda: screen.form.document == {})


async def test_drafts_that_are_taken_over_while_the_files_are_loaded_anew_are_not_lost(own: Home) -> None:
    path, begun, may_end = own.root / "profiles" / "mine.yaml", threading.Event(), threading.Event()
    async with run_app(FakeEngine(), home=own, first="dashboard") as pilot:

        def take_over(kind: str) -> list[dict[str, str]]:
            if begun.is_set():
                return []
            begun.set()
            may_end.wait(10)
            return [{"kind": kind, "key": str(path), "text": "name: unsaved\n", "base": path.read_text()}]

        pilot.app.drafts.take_over = take_over  # type: ignore[attr-defined]
        await pilot.app.action_go("profile")  # type: ignore[attr-defined]
        await until(pilot, begun.is_set)
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        screen.load_files(path)
        may_end.set()
        await until(pilot, lambda: screen.editor.text == "name: unsaved\n")


async def test_differences_and_the_users_editor(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_app(FakeEngine(), home=own, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.file is not None and screen.file.name == "mine" and screen.form.fields)
        screen.editor.load_text("model: {dtype: bfloat16}\ndata:\n  train: rows.jsonl\n")
        await pilot.press("f3")
        await until(pilot, lambda: "the file as it is saved" in screen_text(pilot))
        await pilot.press("enter")
        await until(
            pilot, lambda: "1 setting with another value" in screen_text(pilot) and "- float32" in screen_text(pilot)
        )
        await pilot.press("escape")
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.delenv("EDITOR", raising=False)
        await pilot.press("f4")
        await until(pilot, lambda: "export EDITOR" in screen_text(pilot))
        monkeypatch.setenv("EDITOR", "sed -i s/bfloat16/float16/")
        monkeypatch.setattr(type(pilot.app), "suspend", lambda app: __import__("contextlib").nullcontext())
        await pilot.press("f4")
        await until(pilot, lambda: "dtype: float16" in screen.editor.text)
