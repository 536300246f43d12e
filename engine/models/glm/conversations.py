"""The chat templates of the ChatGLM generations, one Jinja file each in `templates`. Their first comment is read by
`engine.models.template_metadata`."""

from __future__ import annotations

from pathlib import Path

_FILES = {1: "chatglm.jinja", 2: "chatglm2.jinja", 3: "chatglm3.jinja"}


def read_template(generation: int) -> str:
    """The chat template of a generation, 1 to 3."""
    return (Path(__file__).parent / "templates" / _FILES[generation]).read_text(encoding="utf-8")
