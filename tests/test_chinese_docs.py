"""The Chinese pages say what the English ones say, as far as a program can tell.

Headings, code blocks, tables, lists, code spans, figures and links are compared section by section; a failure names
the section of the English page that differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.test_docs import ROOT, WIDTH, anchors

CHINESE = ROOT / "docs/zh"
ENGLISH_ONLY = {"architecture", "codes", "journals", "protocol", "reference"}
PAGES = {"README.zh.md": "README.md"} | {
    f"docs/zh/{page.name}": f"docs/{page.name}" for page in sorted(CHINESE.glob("*.md"))
}

FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
# `[English](…)` and `[中文](…)` below a title lead to the same page in the other language.
SWITCH = re.compile(r"^\[(?:English|中文)\]\([^)]+\)$", re.MULTILINE)


def read(name: str) -> str:
    return SWITCH.sub("", (ROOT / name).read_text(encoding="utf-8"))


def sections(text: str) -> list[tuple[str, str]]:
    """The page cut before each heading: (heading, text up to the next one)."""
    blocks: list[str] = []

    def hide(block: re.Match[str]) -> str:
        blocks.append(block.group())
        return f"\0{len(blocks) - 1}\0"

    found = []
    for part in re.split(r"^(?=#+ )", FENCE.sub(hide, text), flags=re.MULTILINE):
        if part.strip():
            heading, _, body = part.partition("\n")
            found.append((heading, re.sub("\0(\\d+)\0", lambda number: blocks[int(number[1])], body)))
    return found


def levels(text: str) -> list[int]:
    return [len(heading) - len(heading.lstrip("#")) for heading, _ in sections(text)]


def prose(body: str) -> str:
    return FENCE.sub("", body)


def code_blocks(body: str) -> list[str]:
    return [block.group() for block in FENCE.finditer(body)]


def table_rows(body: str) -> list[int]:
    """The number of cells in each row of the section's tables."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in prose(body).splitlines() if line.startswith("|")]


def verdicts(body: str) -> list[str]:
    """The yes and no of the tables that say what works with what."""
    return re.findall(r"(?<=\| )(?:yes|–)(?= \|)", prose(body))


def list_items(body: str) -> list[str]:
    """The marks of the section's list items, with their indentation."""
    return re.findall(r"^( *(?:[-*+]|\d+\.)) ", prose(body), re.MULTILINE)


def code_spans(body: str) -> list[str]:
    return sorted({" ".join(span[2].split()) for span in SPAN.finditer(prose(body))})


def figures(body: str) -> list[str]:
    """The figures outside code and links: a number that was changed in one language only is a lie in the other."""
    text = LINK.sub("]", SPAN.sub("", prose(body)))
    text = re.sub(r"^ *\d+\. ", "", text, flags=re.MULTILINE)
    return sorted(set(re.findall(r"\d+(?:[.,:]\d+)*", text)))


def destinations(page: Path) -> Callable[[str], list[str]]:
    """The files that a section of `page` links to; a Chinese page stands for its English one."""

    def targets(body: str) -> list[str]:
        found = set()
        for target in LINK.findall(prose(body)):
            if target.startswith(("http://", "https://")):
                found.add(target)
                continue
            path = target.partition("#")[0]
            file = (page.parent / path).resolve() if path else page
            name = file.relative_to(ROOT).as_posix()
            found.add(PAGES.get(name, name) + ("#" if "#" in target else ""))
        return sorted(found)

    return targets


def differing(english: str, chinese: str, measures: Iterable[Callable[[str], list]]) -> list[str]:
    """One line for each section in which a measure of the two pages differs."""
    lines = []
    for (heading, ours), (translated, theirs) in zip(sections(english), sections(chinese), strict=True):
        for measure in measures:
            wanted, got = measure(ours), measure(theirs)
            if wanted != got:
                missing = [item for item in wanted if item not in got]
                surplus = [item for item in got if item not in wanted]
                what = measure.__name__.replace("_", " ")
                lines.append(f"{heading} ({translated}): {what}: missing {missing}, surplus {surplus}")
    return lines


def test_pages_are_translated_or_listed() -> None:
    there = {page.stem for page in (ROOT / "docs").glob("*.md")}
    translated = {page.stem for page in CHINESE.glob("*.md")}
    assert translated | ENGLISH_ONLY == there, "translate the page, or name it in ENGLISH_ONLY"
    assert not translated & ENGLISH_ONLY


@pytest.mark.parametrize("chinese", PAGES)
def test_each_section_has_what_the_english_one_has(chinese: str) -> None:
    english = PAGES[chinese]
    ours, theirs = read(english), read(chinese)
    headings = "\n".join(
        f"{heading}  =  {translated}"
        for (heading, _), (translated, _) in zip(sections(ours), sections(theirs), strict=False)
    )
    assert levels(theirs) == levels(ours), f"{chinese}: the headings of {english} differ:\n{headings}"
    measures = [code_blocks, table_rows, verdicts, list_items, code_spans, figures]
    found = differing(ours, theirs, measures)
    assert not found, f"{english} says something else than {chinese} in:\n" + "\n".join(found)


@pytest.mark.parametrize("chinese", PAGES)
def test_links_lead_to_the_same_places_and_exist(chinese: str) -> None:
    page, original = ROOT / chinese, ROOT / PAGES[chinese]
    lines = []
    for (heading, ours), (_, theirs) in zip(sections(read(PAGES[chinese])), sections(read(chinese)), strict=True):
        wanted, got = destinations(original)(ours), destinations(page)(theirs)
        if wanted != got:
            lines.append(f"{heading}: {wanted} became {got}")
    for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            lines.append(f"{target} leads nowhere")
        elif file.name in {Path(name).name for name in PAGES} and file.parent == ROOT / "docs":
            english = SWITCH.search(page.read_text(encoding="utf-8"))
            if english is None or target not in english.group():
                lines.append(f"{target}: there is a Chinese page")
    assert not lines, "\n".join([chinese, *lines])


@pytest.mark.parametrize("chinese", PAGES)
def test_lines_are_wrapped_and_punctuated(chinese: str) -> None:
    """A line of prose fits; punctuation after a Chinese character is full-width."""
    text = prose((ROOT / chinese).read_text(encoding="utf-8"))
    assert not [line for line in text.splitlines() if len(line) > WIDTH and not line.startswith("|")]
    assert not re.findall(r".{0,20}[\u4e00-\u9fff][,;:?!](?!\S*\]\().{0,10}", SPAN.sub("", text))


def test_a_difference_is_named_with_its_section() -> None:
    english = "# A\n\n## Keys\n\n- `x` takes 3 s\n\n```sh\na\n```\n"
    chinese = "# 甲\n\n## 按键\n\n- `y` 用 4 秒\n\n```sh\nb\n```\n"
    lines = differing(english, chinese, [code_blocks, table_rows, list_items, code_spans, figures])
    assert [line.split(": missing")[0] for line in lines] == [
        "## Keys (## 按键): code blocks", "## Keys (## 按键): code spans", "## Keys (## 按键): figures"
    ]  # fmt: skip
    assert "missing ['3'], surplus ['4']" in lines[-1]
