"""Links, paths and line lengths in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WIDTH = 100


def strip_code(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", strip_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(folder: Path, name: str) -> bool:
    """Whether a file, a folder or a glob names something below `folder`."""
    return any(folder.glob(name.rstrip("/")))


def test_there_are_pages() -> None:
    assert len(PAGES) > 12


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", strip_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_the_tree_exist(name: str) -> None:
    """Paths from the root, such as `engine/prep/formats`. Those with a placeholder in capitals are left out."""
    text = strip_code((ROOT / name).read_text(encoding="utf-8"))
    paths = re.findall(r"`((?:engine|cockpit|tests|bench|profiles|data|docs)/[\w./*-]*)(?:::\w+)?`", text)
    named = [path for path in paths if not re.search(r"[A-Z]{3}", path)]
    assert not [path for path in named if not is_there(ROOT, path)]


def test_the_files_of_each_package_exist() -> None:
    """Each paragraph of the architecture that begins with a package's name lists files of that package."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paragraphs = re.findall(r"^\*\*((?:engine/)?\w+)\*\* (.+?)\n\n", text, re.DOTALL | re.MULTILINE)
    described = {package for package, _ in paragraphs}
    packages = {f"engine/{path.parent.name}" for path in (ROOT / "engine").glob("*/__init__.py")}
    assert packages <= described
    missing = [
        f"{package}/{file}"
        for package, paragraph in paragraphs
        for file in re.findall(r"`([\w/]+(?:\.py|/))`", paragraph)
        if not is_there(ROOT / package, file) and not is_there(ROOT, file)
    ]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_wrapped(name: str) -> None:
    text = strip_code((ROOT / name).read_text(encoding="utf-8"))
    assert not [line for line in text.splitlines() if len(line) > WIDTH and not line.startswith("|")]
