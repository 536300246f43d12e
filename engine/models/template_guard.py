"""Renders a chat template for the first time in a process of its own, which has little time and memory.

A template is a program. Jinja's sandbox keeps it from the machine, not from running for ever. One without loops over
anything but the conversation, and without products, ends by itself and is not tried.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.models.files import read_bytes, read_json
from engine.models.weights import DamagedFile
from engine.protocol.messages import Problem, ProblemError

SECONDS = 5
"""Time for all trial conversations, of which a common template renders ten thousand in a second."""
MEMORY = 1 << 30
"""Bytes of address space of the process that tries."""
LARGEST = 1 << 20
"""Characters of a template."""
_GROWING = ("center", "format", "indent", "ljust", "rjust", "zfill", "lipsum", "range")
"""Functions and filters whose result may be much larger than what they are given."""
_PROGRAM = """
import json, resource, sys
seconds, memory = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from datetime import datetime
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def refuse(message):
    raise ValueError(message)

template, words = json.load(sys.stdin)
made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
made.globals["raise_exception"] = refuse
made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
compiled = made.from_string(template)
user, assistant = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}
tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
for messages in ([user], [{"role": "system", "content": "s"}, user], [user, assistant] * 8):
    for tools in (None, [tool]):
        for opening in (True, False):
            try:
                compiled.render(messages=messages, tools=tools, add_generation_prompt=opening, **words)
            except MemoryError:
                raise
            except Exception:
                pass
"""


def check(template: Any, where: str) -> None:
    """Raises ProblemError for a chat template, or one of several by name, that does not end by itself."""
    for text in template.values() if isinstance(template, dict) else [template]:
        if isinstance(text, str) and (cause := find_fault(text)):
            raise ProblemError(
                Problem(
                    code="template.endless",
                    title=f"The chat template of {where} cannot be used",
                    cause=cause,
                    hint="use the template of the model's publisher, or a file of your own in data.template",
                )
            )


def find_faults(folder: Path) -> list[str]:
    """A sentence for each chat template in a folder that must not be rendered. Raises nothing for damaged files, which
    are found elsewhere."""
    templates: dict[str, Any] = {}
    for name, read in {"tokenizer_config.json": read_json, "chat_template.json": read_json}.items():
        try:
            content = read(folder / name)
        except DamagedFile:
            continue
        given = content.get("chat_template") if isinstance(content, dict) else None
        for index, each in enumerate(given if isinstance(given, list) else [given]):
            templates[f"{name} {index or ''}".strip()] = each.get("template") if isinstance(each, dict) else each
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        try:
            templates[path.name] = read_bytes(path).decode("utf-8", "replace")
        except DamagedFile:
            continue
    return [
        f"the chat template in {name} cannot be used: {fault}"
        for name, text in templates.items()
        if isinstance(text, str) and (fault := find_fault(text))
    ]


@functools.lru_cache(maxsize=64)
def find_fault(template: str) -> str:
    """Why the template must not be rendered, or an empty string. A template that is no Jinja is left to who renders
    it."""
    if len(template) > LARGEST:
        return f"it has {len(template):,} characters, more than {LARGEST:,}"
    try:
        if _ends_by_itself(template):
            return ""
    except RecursionError:
        return "its parts are nested too deeply"
    return _try(template)


def _ends_by_itself(template: str) -> bool:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(template)
    except TemplateError:
        return False
    if any(True for _ in tree.find_all((nodes.Mul, nodes.Pow, nodes.Macro, nodes.CallBlock))):
        return False
    if not all(_counts(each.left) for each in tree.find_all(nodes.Mod)):  # of a text, it is a format
        return False
    if any(each.recursive or _depth(each) > 4 for each in tree.find_all(nodes.For)):
        return False
    return not any(name in _GROWING for name in _names(tree))


def _counts(value: Any) -> bool:
    """Whether this is a number of a loop, such as `loop.index0`."""
    from jinja2 import nodes

    return isinstance(value, nodes.Getattr) and isinstance(value.node, nodes.Name) and value.node.name == "loop"


def _names(tree: Any) -> Iterator[str]:
    """The names of filters, functions and methods that are used."""
    from jinja2 import nodes

    for each in tree.find_all((nodes.Filter, nodes.Name, nodes.Getattr)):
        yield each.attr if isinstance(each, nodes.Getattr) else each.name


def _depth(loop: Any) -> int:
    """The number of loops in each other."""
    from jinja2 import nodes

    return 1 + max((_depth(each) for each in loop.find_all(nodes.For)), default=0)


def _try(template: str) -> str:
    words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM, str(SECONDS), str(MEMORY)],
            input=json.dumps([template, words]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=3 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a short conversation was not rendered within {SECONDS:g} s"
    if done.returncode < 0:
        return f"a short conversation was not rendered within {SECONDS:g} s of computing"
    if b"MemoryError" in done.stderr:
        return f"a short conversation takes more than {MEMORY >> 20} MB of memory to render"
    return ""
