"""Code compares codes, never words: read from the source with `ast`, and the table of codes held to what the source
uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import engine
from engine.protocol import codes, explanations, journal
from engine.protocol.messages import Problem

ROOT = Path(engine.__file__).parent.parent
SOURCES = sorted(path for package in ("cockpit", "engine") for path in (ROOT / package).rglob("*.py"))

CODE = re.compile(r"[a-z]+(\.[a-z]+(_[a-z]+)*)+")

TEXTS = frozenset({"title", "cause", "hint", "message", "reason", "detail"})
"""Fields that hold prose, whatever message they belong to."""
ERRORS = frozenset({"error", "exception", "err", "exc"})
"""Names of a caught exception: its `str` is prose, too."""
UNCHANGED = frozenset({"strip", "lower", "casefold", "upper"})
"""Methods whose result is still the same prose."""
TAKING_APART = frozenset(
    [
        "startswith",
        "endswith",
        "removeprefix",
        "removesuffix",
        "partition",
        "rpartition",
        "split",
        "rsplit",
        "find",
        "rfind",
        "index",
        "count",
    ]
)
MATCHING = frozenset(["match", "search", "fullmatch", "findall", "finditer", "get"])
"""Methods of a pattern or a table that take the prose as an argument."""
CODED = frozenset({"Problem", "Warn", "Ledger", "BadBatch", "Pause", "Remark", "Issue"})
"""Calls that must name a code."""
FOREIGN = frozenset({"RequestError"})
"""Calls whose `code` is not ours: OpenAI's error codes."""

ALLOWED = {
    ("engine/serving/request_schemas.py", "str(error)"): "msgspec gives the path of a wrong field in its text alone",
    ("engine/llm_api/client.py", "str(error)"): "blanks of a foreign text are joined; nothing is decided",
    ("engine/prep/stages/validate.py", "reason"): "`reason_class` groups texts to show them; nothing is decided",
    ("engine/prep/chat_labels.py", "message"): "a turn of a conversation, not a message of ours",
    ("engine/prep/formats/messages.py", "message"): "a turn of a conversation, not a message of ours",
    ("engine/prep/formats/sharegpt.py", "message"): "a turn of a conversation, not a message of ours",
    ("cockpit/widgets/samples_dialog.py", "title"): "breaks a title into lines",
    ("cockpit/widgets/reply_views.py", "self._view.title"): "a column of a task's value, not a message of ours",
    ("cockpit/widgets/servers.py", "title"): "draws a title only when it is another than the one shown",
    ("engine/training/reporter.py", "detail"): "writes a phase only when it is another than the last",
    ("cockpit/screens/dashboard.py", "title"): "draws a title only when it is another than the one shown",
}
"""(file, prose) that is taken apart or compared, and why it may be."""


# ── the checker ────────────────────────────────────────────────────────────────────────────────────────────────────


def compared_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and prose of each place where code compares a message's text, takes it apart, or looks it up in a table."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            names = _names_of_texts(scope)
            for node in _own_nodes(scope):
                for text in _texts_in(node, names):
                    yield node.lineno, ast.unparse(text)


def _own_nodes(scope: ast.AST) -> Iterator[ast.expr | ast.Match]:
    """Expressions of a function, without those of the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.expr | ast.Match):
            yield child
        yield from _own_nodes(child)


def _names_of_texts(scope: ast.AST) -> set[str]:
    """Names that a function gives to prose."""
    names: set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign) and node.value and _is_text(node.value, names):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _texts_in(node: ast.expr | ast.Match, names: set[str]) -> Iterator[ast.expr]:
    candidates: list[ast.expr] = []
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            if any(isinstance(each, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for each in ops):
                candidates = [part for side in (left, *others) for part in _parts(side)]
        case ast.Call(func=ast.Attribute(value=receiver, attr=name), args=arguments):
            candidates = [receiver] if name in TAKING_APART else list(arguments) if name in MATCHING else []
        case ast.Match(subject=subject):
            candidates = _parts(subject)
        case ast.Subscript(slice=key) if not isinstance(key, ast.Constant):
            candidates = [key]
    yield from (each for each in candidates if _is_text(each, names))


def _parts(side: ast.expr) -> list[ast.expr]:
    return list(side.elts) if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]


def _is_text(node: ast.expr, names: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in TEXTS or name in names
        case ast.Attribute(attr=name):
            return name in TEXTS
        case ast.Subscript(slice=ast.Constant(value=key)):
            return key in TEXTS
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[argument]):
            return _is_text(argument, names) or (isinstance(argument, ast.Name) and argument.id in ERRORS)
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=key), *_]):
            return key in TEXTS
        case ast.Call(func=ast.Attribute(value=inner, attr=method)):
            return method in UNCHANGED and _is_text(inner, names)
    return False


def named_codes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and code of each literal that is given as a code, or that a code is compared with."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        match node:
            case ast.Call(keywords=keywords) if _called(node) not in FOREIGN:
                found = [keyword.value for keyword in keywords if keyword.arg == "code"]
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                found = [value]
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                found = sides if any(_is_code(side) for side in sides) else []
        for each in found:
            yield from ((leaf.lineno, leaf.value) for leaf in _literals(each))


def _literals(node: ast.expr) -> Iterator[ast.Constant]:
    match node:
        case ast.Constant(value=str()):
            yield node
        case ast.IfExp(body=body, orelse=otherwise):
            yield from (*_literals(body), *_literals(otherwise))
        case ast.Tuple(elts=parts) | ast.Set(elts=parts) | ast.List(elts=parts):
            yield from (leaf for part in parts for leaf in _literals(part))


def _is_code(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="code") | ast.Attribute(attr="code") | ast.Subscript(slice=ast.Constant(value="code")):
            return True
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="code"), *_]):
            return True
    return False


def calls_without_code(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in CODED and "code" not in {each.arg for each in node.keywords}:
            yield node.lineno, _called(node)


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


# ── the source ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    assert len(SOURCES) > 200
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_no_code_compares_the_text_of_a_message(trees: dict[str, ast.AST]) -> None:
    found = {(file, text): line for file, tree in trees.items() for line, text in compared_texts(tree)}
    assert [f"{file}:{line}: {text}" for (file, text), line in found.items() if (file, text) not in ALLOWED] == []
    assert sorted(ALLOWED.keys() - found.keys()) == []  # what nobody needs any more is no longer allowed


def test_every_problem_warning_pause_and_mark_names_its_code(trees: dict[str, ast.AST]) -> None:
    found = [(file, line, name) for file, tree in trees.items() for line, name in calls_without_code(tree)]
    sheets = [each for each in found if each[0].startswith("cockpit/") and each[2] == "BadBatch"]  # the app's own sheet
    assert [each for each in found if each not in sheets] == []


def test_the_source_and_the_table_have_the_same_codes(trees: dict[str, ast.AST]) -> None:
    named = [(file, line, code) for file, tree in trees.items() for line, code in named_codes(tree)]
    assert len(named) > 200
    assert [each for each in named if each[2] not in codes.CODES] == []
    others = [tree for file, tree in trees.items() if file != "engine/protocol/codes.py"]
    strings = {node.value for tree in others for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert sorted(codes.CODES.keys() - strings) == []


def test_each_code_is_well_formed_and_explained() -> None:
    assert [code for code in codes.CODES if not CODE.fullmatch(code)] == []
    assert [code for code, meaning in codes.CODES.items() if not re.fullmatch(r"[A-Z].*\.", meaning)] == []
    assert codes.CODES.keys() >= codes.PASSING


def test_the_page_lists_the_table() -> None:
    page = (ROOT / "docs" / "codes.md").read_text(encoding="utf-8")
    assert page == explanations.page(), "python -m engine.protocol.explanations > docs/codes.md"
    assert re.findall(r"^### ([a-z_.]+)$", page, re.MULTILINE) == sorted(codes.CODES)
    assert max(map(len, page.splitlines())) <= 100


# ── the checker itself ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "source",
    [
        "error.problem.title == 'The engine does not answer'",
        "error.problem.title.startswith('There is nothing')",
        "run.reason.startswith(PASSING)",
        "' is held back: ' in entry['message']",
        "entry.get('reason') not in ('', 'asked')",
        "('a', 'b') == (step, batch['reason'])",
        "TABLE[problem.title]",
        "TABLE.get(run.reason)",
        "re.match('disk', reason)",
        "server.detail.removesuffix('/v1')",
        "'allocate memory' in str(error)",
        "problem.hint.lower().find('memory')",
        "def f(run):\n    why = run.reason\n    return why.partition(':')[0]",
        "match run.reason:\n    case 'asked': pass",
    ],
)
def test_the_checker_finds_prose_that_is_compared(source: str) -> None:
    assert len(list(compared_texts(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "error.problem.code == 'engine.unreachable'",
        "run.code in PASSING",
        "if run.reason: show(run.reason)",
        "f'{run.id}: {run.reason}'",
        "reason is None",
        "entry['message']",
    ],
)
def test_the_checker_lets_codes_and_shown_prose_pass(source: str) -> None:
    assert list(compared_texts(ast.parse(source))) == []


def test_the_checker_finds_codes_and_calls_without_one() -> None:
    source = """
Problem(title="x")
journal.Warn(code=code, message="m")
Problem(code="no.such" if one else "run.none", title="x")
if entry.get("code") == "pause.typo" or run.code in ("run.lost",): pass
raise RequestError(400, code="timeout")
"""
    assert list(calls_without_code(ast.parse(source))) == [(2, "Problem")]
    assert [code for _, code in named_codes(ast.parse(source)) if code not in codes.CODES] == ["no.such", "pause.typo"]


# ── older and newer peers ──────────────────────────────────────────────────────────────────────────────────────────


def test_messages_without_a_code_and_with_an_unknown_one_are_read() -> None:
    assert msgspec.json.decode(b'{"title": "x"}', type=Problem).code == codes.UNKNOWN
    assert msgspec.json.decode(b'{"title": "x", "code": "new.thing", "more": 1}', type=Problem).code == "new.thing"
    warning = journal.decode(b'{"kind":"warning","time":1.0,"attempt":1,"message":"m"}')
    assert isinstance(warning, journal.Warn) and warning.code == codes.UNKNOWN
    pause = journal.decode(b'{"kind":"ledger","time":1.0,"attempt":1,"step":3,"name":"pause","new":"disk low: 1 GB"}')
    assert isinstance(pause, journal.Ledger) and pause.code == ""
    state = journal.decode(b'{"kind":"state","time":1.0,"attempt":1,"state":"paused","reason":"asked"}')
    assert isinstance(state, journal.State) and (state.reason, state.code) == ("asked", "")


def test_an_error_as_json_has_code_title_cause_hint_and_place() -> None:
    document = Problem(code="run.none", title="There are no runs yet", hint="cockpit demo").document()
    assert list(document) == ["code", "title", "cause", "hint", "place"]
    assert (document["code"], document["place"]) == ("run.none", "")
