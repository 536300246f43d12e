"""`cockpit export --gguf`, from the command line to what Ollama is given."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from engine.export import gguf_converter
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.cli.conftest import Cockpit
from tests.training.test_profiles import LLAMA, family


@pytest.mark.slow
def test_an_export_in_8_bits_is_measured_and_has_a_modelfile(
    cockpit: Cockpit, bare_home: Home, smollm2: Path, tmp_path: Path
) -> None:
    try:
        gguf_converter.find_converter(None)
    except ProblemError as error:
        pytest.skip(f"{error.problem.title}: `make test` could not install it")
    model = bare_home.models / "tiny"
    model.mkdir(parents=True)
    family(model, LLAMA, smollm2)
    done = cockpit("export", str(model), "--out", "given", "--gguf", "q8_0", "--json", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, made = tmp_path / "given", json.loads(done.stdout)["gguf"]
    assert (made["file"], made["type"], made["modelfile"]) == ("given-q8_0.gguf", "q8_0", "Modelfile")
    assert 0 < made["kl"] < 0.01 and made["top1"] > 0.9  # rounded to 8 bits, and compared
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(folder / made["file"]).tensors}
    assert gguf.GGMLQuantizationType.Q8_0 in types

    lines = (folder / "Modelfile").read_text().splitlines()
    assert "FROM ./given-q8_0.gguf" in lines and 'PARAMETER stop "<|im_end|>"' in lines
    assert "<|im_start|>assistant\\n" in next(line for line in lines if line.startswith("{{- end }}{{"))
    readme = (folder / "README.md").read_text()
    assert "given-q8_0.gguf" in readme and "ollama create NAME -f Modelfile" in readme
