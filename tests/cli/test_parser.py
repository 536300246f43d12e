from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.cli import VERBS, UsageError, build_parser, main
from cockpit.command_line.options import Verb
from cockpit.verbs.man import build_page
from tests.cli.conftest import Cockpit


def leaves(verbs: tuple[Verb, ...]) -> Iterator[Verb]:
    for verb in verbs:
        yield from leaves(verb.verbs) if verb.verbs else [verb]


def test_every_row_of_the_table_names_a_function() -> None:
    for verb in leaves(VERBS):
        module, _, name = verb.function.partition(":")
        assert callable(getattr(importlib.import_module(f"cockpit.verbs.{module}"), name)), verb


@pytest.mark.parametrize("arguments", [["--home", "/h", "--json", "runs"], ["runs", "--home", "/h", "--json"]])
def test_shared_options_hold_on_both_sides_of_the_verb(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    assert (options.home, options.json, options.function) == ("/h", True, "runs:runs")


def test_no_verb_is_the_app() -> None:
    assert build_parser().parse_args(["--readonly"]).function == "open_app:open_app"


@pytest.mark.parametrize(
    "arguments", [["run"], ["show"], ["runs", "--stat", "x"], ["profile"], ["chat", "m", "--top-k", "x"]]
)
def test_a_mistyped_command_is_an_error_of_ours(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        build_parser().parse_args(arguments)


def test_errors_go_to_stderr_and_with_json_to_stdout_too(cockpit: Cockpit) -> None:
    plain = cockpit("show", "last", "extra")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert "unrecognized arguments: extra" in plain.stderr
    asked = cockpit("engine", "status", "--json")
    assert asked.returncode == 2
    assert json.loads(asked.stdout)["error"]["hint"] == "cockpit engine start"


def test_the_app_without_a_terminal_names_the_verbs(cockpit: Cockpit) -> None:
    answer = cockpit()
    assert answer.returncode == 2
    assert "needs a terminal" in answer.stderr


def test_help_is_there_within_150_ms() -> None:
    """The best of a few: other programs on the machine only ever make it slower."""
    times = [1.0]
    while min(times) >= 0.150 and len(times) <= 40:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cockpit.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.150


def test_a_closed_pipe_is_no_error(cockpit: Cockpit) -> None:
    program = f"{sys.executable} -m cockpit.cli profile schema | head -c 1; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("{0\n", "")


@pytest.mark.parametrize(
    ("module", "arguments", "status", "said"),
    [
        ("cockpit", ["--version"], 0, "cockpit 0."),
        ("cockpit", ["nosuch"], 2, "nosuch"),
        ("engine", [], 2, "python -m cockpit"),
    ],
)
def test_packages_run_as_modules(module: str, arguments: list[str], status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian", "x"], "train"),
        (["data", "inspct"], "inspect"),
        (["runs", "--stat", "x"], "--state"),
        (["train", "p", "--detatch"], "--detach"),
        (["xyzzy"], ""),
        (["runs", "--xyzzy"], ""),
    ],
)
def test_a_mistyped_word_is_answered_with_what_was_meant(arguments: list[str], meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_parser().parse_args(arguments)
    assert (f"did you mean `{meant}`?" in str(caught.value)) if meant else "did you mean" not in str(caught.value)


@pytest.mark.parametrize("command", [["-m", "cockpit"], ["-m", "cockpit.cli"]])
def test_the_version_is_said(command: list[str]) -> None:
    answer = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("cockpit ")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    written = capsys.readouterr().out
    for verb in leaves(VERBS):
        assert verb.name in written
    if shell == "bash":
        asked = (
            'COMP_WORDS=(cockpit tr); COMP_CWORD=1; f=$(complete -p cockpit | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
            '$f cockpit tr cockpit; echo "${COMPREPLY[@]}"'
        )
        answer = subprocess.run(["bash", "-c", f"{written}\n{asked}"], capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == "train"


def test_the_manual_page_is_that_of_this_parser() -> None:
    """`cockpit man > docs/cockpit.1` makes it."""
    page = build_page()
    assert (Path(__file__).parents[2] / "docs/cockpit.1").read_text(encoding="utf-8") == page
    for verb in leaves(VERBS):
        assert f"{verb.name.replace('-', chr(92) + '-')}" in page
    assert not [line for line in page.splitlines() if line.startswith("'")]


def test_env_import_is_profile_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("profile", "env"):
        options = build_parser().parse_args([group, "import", "a.yaml", "--out", "b.yaml"])
        assert (options.function, options.file, options.out) == ("profile_import:import_", "a.yaml", "b.yaml")
    helps = []
    for group in ("profile", "env"):
        with pytest.raises(SystemExit):
            main([group, "import", "--help"])
        helps.append(" ".join(capsys.readouterr().out.partition("\n\n")[2].split()))
    assert helps[0] == helps[1] and "LLaMA-Factory" in helps[0]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert " env " not in capsys.readouterr().out
