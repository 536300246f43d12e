"""The conversations of the ChatGLM generations as Jinja templates, one file in `templates` a generation. Their first
comment says what `engine.models.template_metadata` reads."""

from __future__ import annotations

from pathlib import Path

_FILES = {1: "chatglm.jinja", 2: "chatglm2.jinja", 3: "chatglm3.jinja"}


def read_template(generation: int) -> str:
    """The chat template of a generation, 1 to 3."""
    return (Path(__file__).parent / "templates" / _FILES[generation]).read_text(encoding="utf-8")
