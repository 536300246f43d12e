"""Bounds of YAML that people write. Aliases let ten lines stand for a billion settings, and brackets nest for ever."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

LARGEST = 4 << 20
"""Bytes of a profile. The longest are a thousand times shorter."""
MOST_NODES = 100_000
"""Keys and values after every alias is replaced by what it stands for."""
DEEPEST = 50
"""Mappings and lists inside each other."""
_OPEN = 500
"""Brackets that are open anywhere, those in texts included."""
_BRACKETS = re.compile(r"[\[{]")


class TooLarge(MarkedYAMLError):  # type: ignore[misc]
    """YAML beyond these bounds, with the place where it begins."""


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError, and TooLarge for one that no person has written."""
    if not path.is_file():  # reading a pipe could block for ever
        raise FileNotFoundError(2, "it is not a file" if path.exists() else "No such file or directory", str(path))
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise TooLarge(problem=f"the file is larger than {LARGEST >> 20} MiB, which no profile is")
    return content


def check(text: str) -> None:
    """Raises TooLarge for text beyond the bounds, and ruamel's errors for text that is not YAML."""
    if len(text) > LARGEST:
        raise TooLarge(problem=f"the text is larger than {LARGEST >> 20} MiB, which no profile is")
    _check_brackets(text)
    if len(_BRACKETS.findall(text)) <= DEEPEST and "&" not in text:
        return  # block style nests only by indentation, a column more each time
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except RecursionError:
        raise TooLarge(problem=f"more than {DEEPEST} lists or mappings are inside each other") from None
    if root is not None:
        _Count().of(root, 0)


def _check_brackets(text: str) -> None:
    """ruamel takes minutes to find out that brackets are not closed. Those inside texts count here, too."""
    depth = 0
    for found in re.finditer(r"[\[{\]}]", text):
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1)
        if depth > _OPEN:
            line = text.count("\n", 0, found.start())
            mark = StreamMark("", found.start(), line, found.start() - text.rfind("\n", 0, found.start()) - 1)
            raise TooLarge(problem=f"more than {_OPEN} brackets are open", problem_mark=mark)


class _Count:
    """Counts the nodes of a graph as if it were a tree, each node once."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: Node, depth: int) -> int:
        if id(node) in self._counts:
            return self._counts[id(node)]
        if id(node) in self._open:
            raise TooLarge(problem="an alias stands for something that it is in", problem_mark=_mark(node))
        if depth > DEEPEST:
            message = f"more than {DEEPEST} lists or mappings are inside each other"
            raise TooLarge(problem=message, problem_mark=_mark(node))
        self._open.add(id(node))
        below: list[Node] = []
        if isinstance(node, MappingNode):
            below = [each for pair in node.value for each in pair]
        elif isinstance(node, SequenceNode):
            below = node.value
        count = 1 + sum(self.of(each, depth + 1) for each in below)
        self._open.discard(id(node))
        if count > MOST_NODES:
            message = f"with its aliases replaced, this stands for more than {MOST_NODES:,} settings"
            raise TooLarge(problem=message, problem_mark=_mark(node))
        self._counts[id(node)] = count
        return count


def _mark(node: Node) -> StreamMark | None:
    mark: StreamMark | None = node.start_mark
    return mark
