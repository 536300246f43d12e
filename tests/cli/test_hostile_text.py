"""No verb sends a control character to the terminal that comes from elsewhere: from rows, replies, logs, journals,
names and errors."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.progress import Progress

from cockpit.state.chat_tree import ChatReply, ChatTree, dump_tree
from engine.protocol import terminal
from engine.protocol.console import GuardedConsole, text, text_column
from engine.protocol.home import Home
from tests.cli.conftest import ROOT, command, environment
from tests.hostile import EVIL, SHOWN, find_controls
from tests.scripted.bench import Engine


def run_on_terminal(home: Home, folder: Path, *arguments: str, typed: str = "") -> str:
    """All that `cockpit ARGUMENTS` sends to a terminal, which is 300 columns wide."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        env=environment(home, TERM="xterm-256color", COLUMNS="300"),
        cwd=folder,
        stdin=theirs if typed else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    if typed:
        os.write(ours, typed.encode())
    sent = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        sent += piece
    os.close(ours)
    process.wait(30)
    return sent.decode(errors="surrogateescape")


def with_evil(line: bytes) -> bytes:
    """The journal's entry with hostile words in place of its own."""
    entry = json.loads(line)
    if entry["kind"] == "metrics":
        entry["values"] |= {EVIL: 1.0}
    if entry.get("problem"):
        entry["problem"] |= {"title": EVIL, "cause": EVIL, "hint": EVIL}
    return json.dumps(entry).encode()


@pytest.fixture
def hostile(engine: Engine, tmp_path: Path) -> tuple[Home, Path, str]:
    """A home with a failed run whose journal, log and profile hold `EVIL`, and a folder of hostile files."""
    run = engine.wait(engine.submit("generation.seed=3", steps=5), "failed")
    engine.close()
    directory = engine.home.run(run.id)
    for journal in (directory.events, directory.lifecycle):
        journal.write_bytes(b"".join(with_evil(line) + b"\n" for line in journal.read_bytes().splitlines()))
    warning = {"kind": "warning", "time": 1.0, "attempt": 1, "message": EVIL, "hint": EVIL, "code": EVIL}
    ledger = {"kind": "ledger", "time": 1.0, "attempt": 1, "step": 1, "name": EVIL, "old": EVIL, "new": EVIL}
    metrics = {"kind": "metrics", "time": 1.0, "attempt": 1, "step": 1, "values": {EVIL: 1.0, "train/loss": 1.0}}
    with open(directory.events, "ab") as events:
        events.write(b"".join(json.dumps(each).encode() + b"\n" for each in (warning, ledger, metrics)))
    directory.log.write_bytes(b"10%\r20%\r\n" + EVIL.encode() + b"\n\x9b5n not UTF-8\n")
    for index in engine.home.registry.parent.glob("registry.db*"):
        index.unlink()  # it knows the journals by their offsets
    engine.restart()
    folder = tmp_path / "work"
    folder.mkdir()
    row = {"instruction": f"{EVIL} say something", "output": EVIL, EVIL: EVIL}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({EVIL: EVIL}) + "\n")
    named = folder / EVIL.replace("/", "").replace("\x00", "")
    named.mkdir()
    (named / "config.json").write_text(json.dumps({"model_type": EVIL, "architectures": [EVIL]}))
    profile = f"description: {json.dumps(EVIL)}\n{json.dumps('key' + EVIL)}: {json.dumps(EVIL)}\n"
    (folder / "evil.yaml").write_text(profile.replace("/", "\\/"))
    (folder / "replies.jsonl").write_text(json.dumps({"prompt": EVIL, "reply": EVIL, "reference": EVIL}) + "\n")
    return engine.home, folder, run.id


def assert_shown(hostile: tuple[Home, Path, str], verbs: list[tuple[str, ...]]) -> None:
    home, folder, _ = hostile
    silent = []
    for verb in verbs:
        sent = run_on_terminal(home, folder, *verb)
        assert sent.strip(), verb
        assert "Traceback" not in sent and "internal error" not in sent, sent
        assert not find_controls(sent), (verb, sent)
        if "]52;c;RVZJTA" not in sent:
            silent.append((verb[:2], sent))
    assert len(silent) <= len(verbs) / 2, silent


def name_of(folder: Path) -> str:
    return next(path.name for path in folder.iterdir() if path.is_dir())


def test_no_verb_sends_foreign_control_characters(hostile: tuple[Home, Path, str]) -> None:
    _, folder, run = hostile
    named = name_of(folder)
    verbs = [
        ("show", run), ("logs", run), ("metrics", run), ("show", EVIL.replace("\0", "")), ("runs", "--state", named),
        ("chat", "x", "--prompt", EVIL.replace("\0", "")), ("profile", "check", "evil.yaml"),
        ("profile", "check", "--set", f"{named}=1", "evil.yaml"), ("profile", "show", named), ("train", "evil.yaml"),
        ("data", "inspect", "rows.jsonl"), ("serve", "--stop", named), (named,), ("engine", named),
    ]  # fmt: skip
    assert_shown(hostile, verbs)


@pytest.mark.slow
def test_no_verb_that_loads_libraries_sends_them_either(hostile: tuple[Home, Path, str]) -> None:
    _, folder, _run = hostile
    named = name_of(folder)
    verbs = [
        ("data", "validate", named), ("data", "stats", named), ("model", "verify", named), ("doctor", named),
        ("model", "find", "."), ("plot", named), ("eval", "--predictions", f"{named}.jsonl"),
    ]  # fmt: skip
    assert_shown(hostile, verbs)


def test_a_conversation_shows_them(hostile: tuple[Home, Path, str]) -> None:
    """The terminal's echo of what is typed is not ours: so they come from a saved conversation."""
    home, folder, _ = hostile
    tree = ChatTree().add_question(f"question {EVIL}")
    tree = tree.add_answer(tree.path[-1].id, [ChatReply("x", f"answer {EVIL}", {})])
    (folder / "said.json").write_text(dump_tree(tree, targets=["x"], settings={}))
    sent = run_on_terminal(home, folder, "chat", "x", typed="/load said.json\n/load missing\nexit\n")
    assert f"you> question {SHOWN}" in sent and f"answer {SHOWN}" in sent
    assert not find_controls(sent)


def test_json_escapes_them(hostile: tuple[Home, Path, str]) -> None:
    home, folder, run = hostile
    for verb in (("show", run), ("metrics", run), ("data", "inspect", "rows.jsonl"), ("profile", "check", "evil.yaml")):
        done = subprocess.run(
            command(*verb, "--json"), env=environment(home), cwd=folder, capture_output=True, check=False
        )
        printed = done.stdout.decode()
        assert not find_controls(printed), verb
        for line in printed.splitlines():
            json.loads(line)
        assert "RVZJTA" in printed, verb


def test_json_says_the_same_as_without_escapes() -> None:
    document = {"a": EVIL + "\udc9b", "b": ["é", "汉"]}
    assert json.loads(terminal.to_json(document)) == document
    assert not find_controls(terminal.to_json(document))
    assert msgspec.json.decode(terminal.escape_json(msgspec.json.encode({"a": EVIL}).decode())) == {"a": EVIL}


def test_show_controls_leaves_text_alone() -> None:
    plain = "one\ttwo\nthree é 汉 👩‍👩‍👧 עברית\n"
    assert terminal.show_controls(plain) == plain
    assert terminal.show_controls("a\r\nb\rc\x9b\udc80\u202e") == "a\nb␍c\\x9b\\udc80⟨U+202E⟩"
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        assert not find_controls(terminal.show_controls(chr(code)))


def test_the_bars_of_libraries_work() -> None:
    from tqdm import tqdm

    written = io.StringIO()
    stream: Any = terminal.GuardedStream(written, bars=True)
    for position in (0, 1):
        for _ in tqdm(range(3), desc=f"name {EVIL}", file=stream, position=position, mininterval=0, ascii=True):
            pass
    assert "␍" not in written.getvalue() and "name ␛]52" in written.getvalue() and "100%" in written.getvalue()
    assert not find_controls(written.getvalue())
    for each in ("a\rb", "\x1b[A\x1b[5n", "\r\x1b[A"):
        assert "\x1b" not in _through(stream, written, each) and "\r" not in _through(stream, written, each)[1:]


def _through(stream: Any, written: io.StringIO, text: str) -> str:
    before = len(written.getvalue())
    stream.write(text)
    return written.getvalue()[before:]


def test_rich_prints_its_styles_and_no_foreign_ones(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.guard()
    console = GuardedConsole()
    assert console.file is sys.stdout.stream  # type: ignore[attr-defined]
    console._force_terminal, console._color_system = True, console._color_system
    console.print(text(EVIL, "bold red"), EVIL, "[/y]")
    console.out(EVIL)
    with Progress(text_column("{task.description}"), console=console) as progress:
        progress.add_task(EVIL, total=None)
        print(EVIL)
    with console.status(text(EVIL)) as status:
        status.update(text(EVIL))
    sent = capsys.readouterr().out
    assert SHOWN in sent and "[/y]" in sent and "[bold]KEY" in sent
    assert not find_controls(sent)


def _is_our_own(argument: ast.expr) -> bool:
    """Whether markup is a constant of ours, or a translation of one without fields."""
    if isinstance(argument, ast.IfExp):
        return _is_our_own(argument.body) and _is_our_own(argument.orelse)
    if isinstance(argument, ast.Call):
        return ast.unparse(argument.func) == "tr" and not argument.keywords and all(map(_is_our_own, argument.args))
    return isinstance(argument, ast.Constant) or (isinstance(argument, ast.Name) and argument.id.isupper())


def test_nothing_prints_past_the_guard() -> None:
    """Consoles are `GuardedConsole`, nobody writes to `sys.stdout.buffer`, and no text is parsed as markup."""
    found, seen = [], 0
    for path in [*(ROOT / "cockpit").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]:
        seen += 1
        for node in ast.walk(ast.parse(path.read_text())):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Console", "get_console")
            ):
                found.append(f"{place}: a plain Console")
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "buffer"
                and ast.unparse(node.value).startswith("sys.std")
            ) and "stdin" not in ast.unparse(node.value):
                found.append(f"{place}: {ast.unparse(node)}")
            marked = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_markup")
            if marked and not all(map(_is_our_own, node.args)):
                found.append(f"{place}: markup that is no constant")
            if isinstance(node, ast.keyword) and node.arg == "markup" and ast.unparse(node.value) == "True":
                found.append(f"{place}: markup=True")
    assert seen > 200 and not found, "\n".join(found)
