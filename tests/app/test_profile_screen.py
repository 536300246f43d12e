"""The profile screen: form and text, problems as one types, save as, launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.screens.profile import ProfileScreen
from engine.protocol.home import Home
from engine.protocol.messages import Message, Submit
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until


class TakesJobs(FakeEngine):
    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        if operation == "submit":
            self.requests.append((operation, message))
            return demo_run(id="new-run", state="queued", step=0)
        return await super().request(operation, message, timeout)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home")


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_a_built_in_profile_is_shown_as_form_and_text(size: tuple[int, int], home: Home) -> None:
    async with run_app(FakeEngine(), size, home=home, first="profile") as pilot:
        await until(pilot, lambda: "✓ valid" in screen_text(pilot))
        text = screen_text(pilot)
        for wanted in (
            "triples-qlora",
            "built-in, read-only",
            "● base",
            "● quantization",
            "nf4",
            "description:",
            "Launch",
        ):
            assert wanted in text
        assert_fits(pilot)


async def test_a_copy_is_changed_through_the_form_and_its_problems_are_marked(home: Home) -> None:
    async with run_app(FakeEngine(), LOW, home=home, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: "✓ valid" in screen_text(pilot))
        await pilot.press("ctrl+s", "enter")
        saved = home.root / "profiles" / "triples-qlora.yaml"
        await until(pilot, lambda: screen.file and screen.file.path == saved and screen.result)
        screen.form.settings.highlighted = screen.form.settings.get_option_index("adapter.rank")
        await pilot.press("enter", *["backspace"] * 2, *"0", "enter")
        await until(pilot, lambda: "✗ 1 problem" in screen_text(pilot))
        line = next(at for at, text in enumerate(screen.editor.text.splitlines(), 1) if "rank: 0" in text)
        await until(pilot, lambda: f"✗ {line}:3" in screen_text(pilot) and "adapter.rank" in screen_text(pilot))
        assert "# pulled into COCKPIT_HOME/models on first need" in screen.editor.text
        await pilot.press("ctrl+l")  # refused: goes to the problem instead
        await until(pilot, lambda: screen.editor.cursor_location == (line - 1, 2))
        screen.form.settings.focus()
        await pilot.press("delete")
        await until(pilot, lambda: "✓ valid" in screen_text(pilot))
        assert "rank:" in saved.read_text() and "rank:" not in screen.editor.text, "saved only when asked to"


async def test_launch_asks_then_submits_and_opens_the_run(home: Home) -> None:
    engine = TakesJobs()
    async with run_app(engine, home=home, first="profile") as pilot:
        await until(pilot, lambda: "✓ valid" in screen_text(pilot))
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "launch it" in screen_text(pilot))
        assert "lora of rank 16" in screen_text(pilot) and "8 × 1 × 1" in screen_text(pilot)
        assert not [operation for operation, _ in engine.requests if operation == "submit"]
        await pilot.press("y")
        await until(pilot, lambda: pilot.app.current_mode == "dashboard")
        (submit,) = [message for operation, message in engine.requests if operation == "submit"]
        assert isinstance(submit, Submit) and "nf4" in submit.profile


async def test_a_base_in_an_original_layout_is_said_to_be_converted(home: Home) -> None:
    folder = home.create().models / "chatglm3-6b"
    goldens = Path(__file__).parents[1] / "goldens" / "chatglm3"
    folder.mkdir()
    for name, source in {"tokenizer.model": "tiny_tokenizer.model"}.items():
        (folder / name).write_bytes((goldens / source).read_bytes())
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((goldens / name).read_bytes())
    own = home.root / "profiles" / "glm.yaml"
    own.parent.mkdir()
    own.write_text("model: {base: chatglm3-6b}\ndata: {train: [{source: triples/train.jsonl}]}\n")
    async with run_app(FakeEngine(), LOW, home=home, first="profile") as pilot:
        await until(pilot, lambda: "chatglm3-6b is ChatGLM3: converted while" in screen_text(pilot))
        assert "✓ valid" in screen_text(pilot)
        assert_fits(pilot)
        (folder / "model.safetensors").unlink()
        pilot.app.screen.load_files(own)
        await until(pilot, lambda: "✗ 1 problem" in screen_text(pilot) and "there are no weights" in screen_text(pilot))
