"""The types of GGUF, and the two tools of llama.cpp that make them, with stand-ins for the tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from cockpit.command_line.model_verbs import GGUF_TYPES
from engine.export import gguf_converter
from engine.options.export import ExportOptions
from engine.protocol.messages import ProblemError

CONVERTER = """
import sys
kind, out = sys.argv[sys.argv.index("--outtype") + 1], sys.argv[sys.argv.index("--outfile") + 1]
open(out, "w").write("from " + kind)
"""
QUANTIZER = f"""#!{sys.executable}
import sys
given, out, kind = sys.argv[1:]
if kind == "Q2_K":
    sys.exit("tensor cannot be quantised")
open(out, "w").write(open(given).read() + " to " + kind)
"""


def test_small_types_are_made_from_a_file_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_converter, "_compare", lambda folder, made: {"unread": "a stand-in"})
    checkout, folder = tmp_path / "llama.cpp", tmp_path / "model"
    (checkout / "build/bin").mkdir(parents=True)
    folder.mkdir()
    (checkout / gguf_converter.SCRIPT).write_text(CONVERTER)
    command = gguf_converter.find_converter(str(checkout))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProblemError, match="no llama-quantize") as caught:
        gguf_converter.find_quantizer(str(checkout))
    assert caught.value.problem.code == "export.no_converter" and "q8_0" in (caught.value.problem.hint or "")
    tool = checkout / "build/bin" / gguf_converter.QUANTIZER
    tool.write_text(QUANTIZER)
    tool.chmod(0o755)
    found = gguf_converter.find_quantizer(str(checkout))
    assert found == str(tool) == gguf_converter.find_quantizer(str(checkout / gguf_converter.SCRIPT))
    done = gguf_converter.convert(folder, "x", "q4_k_m", command, found)
    assert done["file"] == "x-q4_k_m.gguf" and (folder / "x-q4_k_m.gguf").read_text() == "from auto to Q4_K_M"
    gguf_converter.convert(folder, "x", "q8_0", command)
    assert (folder / "x-q8_0.gguf").read_text() == "from q8_0"
    with pytest.raises(ProblemError, match="cannot be quantised"):
        gguf_converter.convert(folder, "x", "q2_k", command, found)
    assert sorted(path.name for path in folder.iterdir()) == ["x-q4_k_m.gguf", "x-q8_0.gguf"]


def test_profile_verb_and_tools_know_the_same_types() -> None:
    kinds = get_args(get_args(ExportOptions.model_fields["gguf"].annotation)[0])
    assert kinds == GGUF_TYPES and set(gguf_converter.QUANTISED) < set(kinds)


def test_perplexity() -> None:
    scores, text = torch.randn(5, 7).log_softmax(-1), torch.tensor([[1, 2, 3, 4, 5]])
    wanted = torch.nn.functional.cross_entropy(scores[:-1], text[0, 1:]).exp()
    assert gguf_converter._measure_perplexity([scores], [text]) == pytest.approx(float(wanted))
