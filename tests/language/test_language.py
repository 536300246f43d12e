"""The language that is chosen, and how texts come out in it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.language.catalogue import read_catalogue
from cockpit.language.extract import ENGINE, ROOT, find_messages
from cockpit.language.loaded_catalogue import FIELD, build_templates
from cockpit.language.translate import read_language, set_language, tr, tr_engine
from cockpit.state.formatting import counted


@pytest.fixture
def chinese() -> Iterator[None]:
    set_language("zh")
    yield
    set_language("en")


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ("", {}, "en"),
        ("", {"LANG": "zh_CN.UTF-8"}, "zh"),
        ("", {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ("", {"LANG": "en_US.UTF-8", "LANGUAGE": "zh:en"}, "zh"),
        ("", {"LANG": "de_DE.UTF-8"}, "en"),
        ("language: zh\n", {"LANG": "en_US.UTF-8"}, "zh"),
        ("theme: cockpit\nlanguage: 'en'\n", {"LANG": "zh_CN.UTF-8"}, "en"),
        ("language: auto\n", {"LANG": "zh_CN.UTF-8"}, "zh"),
        ("language: klingon\n", {"LANG": "zh_CN.UTF-8"}, "zh"),
        ("\x00\xff\n", {"LANG": "zh_CN.UTF-8"}, "zh"),
    ],
)
def test_settings_decide_and_then_the_locale(
    tmp_path: Path, settings: str, environment: dict[str, str], expected: str
) -> None:
    if settings:
        (tmp_path / "settings.yaml").write_text(settings, encoding="latin-1")
    assert read_language(str(tmp_path), environment) == expected
    assert read_language("", {"COCKPIT_HOME": str(tmp_path), **environment}) == expected


def test_english_reads_no_catalogue() -> None:
    code = (
        "import sys, cockpit.language.translate as l; l.set_language('en'); l.tr('x'); print('gettext' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_fields_are_filled_in_in_each_language(chinese: None) -> None:
    assert tr("no such message {n:,}", n=1234) == "no such message 1,234"
    assert counted(3, "run") != "3 runs" and "3" in counted(3, "run")
    set_language("en")
    assert tr("{n:,} of {m}", n=1234, m="x") == "1,234 of x"
    assert (counted(1, "run"), counted(1200, "row")) == ("1 run", "1,200 rows")


def test_each_message_of_the_engine_is_recognised_with_its_fields(chinese: None) -> None:
    """For every message with fields: what fills them in stands in the translation, and the English words do not."""
    rng, catalogue, wrong = random.Random(5), read_catalogue("zh"), []
    for message in find_messages():
        if message.context != ENGINE:
            continue
        numbers = FIELD.findall(message.text)
        fillers = {number: f"x{rng.randrange(10**6)}y" for number in numbers}
        said = tr_engine(FIELD.sub(lambda field, fillers=fillers: fillers[field[1]], message.text))  # type: ignore[misc]
        translation = str(catalogue.get(message.text, ENGINE).string)  # type: ignore[union-attr]
        expected = FIELD.sub(lambda field, fillers=fillers: fillers[field[1]], translation)  # type: ignore[misc]
        wrong += [(message.text, said)] if said != expected else []
    assert len(wrong) < 0.02 * len(find_messages()), wrong  # two may look alike


def test_what_nobody_knows_stays_as_it_is(chinese: None) -> None:
    for text in (
        "",
        "What the job is called",
        "Error: size mismatch",
        "中文",
        "{0}",
        "\n",
        "a\nb",
        "%(x)s",
        "x" * 100_000,
    ):
        assert tr_engine(text) == text


def test_the_message_with_the_most_words_wins() -> None:
    templates = build_templates({"engine\x04{0} is {1}": "A{0}{1}", "engine\x04{0} is no {1}": "B{0}{1}", "x {0}": "C"})
    assert [template.translation for template in templates] == ["B{0}{1}", "A{0}{1}"]


def test_the_command_line_speaks_it(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("language: zh\n")
    environment = {
        "COCKPIT_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "cockpit", "train", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert any("一" <= letter <= "鿿" for letter in said)
