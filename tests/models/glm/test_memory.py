"""Loading holds the model in its target dtype and at most a shard besides, measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.glm.layouts import FIRST, THIRD, fill

SHARDS = 8
WIDER = {"hidden_size": 1024, "num_attention_heads": 8, "num_layers": 8}
SIZES = {
    FIRST: WIDER | {"inner_hidden_size": 2048, "vocab_size": 8000},
    THIRD: WIDER | {"ffn_hidden_size": 2048, "kv_channels": 128, "padded_vocab_size": 8000},
}
MEASURE = """
import sys, threading, time
import torch
from engine.models.quantization import quantization_config
from engine.models.loading import load_model

def held():
    # Mapped pages of files are the page cache's: the kernel takes them back when it needs them.
    words = open("/proc/self/status").read().split()
    return int(words[words.index("RssAnon:") + 1]) * 1024

def load(folder, quantization):
    how = quantization_config(quantization, "float16")
    return load_model(folder, dtype=torch.float16, quantization_config=how, device_map={"": "cpu"})

load(sys.argv[1], "nf4")  # what the libraries allocate once is no part of it
peak = held()

def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
for quantization in ("none", "nf4"):
    peak = before = held()
    model = load(sys.argv[2], quantization)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(peak - before, size)
    del model
"""


@pytest.mark.slow
@pytest.mark.parametrize(("source", "binary"), [(FIRST, True), (THIRD, False)])
def test_peak_memory_is_the_model_and_one_shard(tmp_path: Path, source, binary):
    config = json.loads((source / "config.json").read_text()) | SIZES[source]
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = fill(tmp_path, shards=SHARDS, binary=binary)
    shard = max(path.stat().st_size for path in folder.iterdir())
    assert shard > 20e6
    # The C library keeps freed blocks below a size that it adapts; fixed, they go back at once as large models' do.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-P", "-c", MEASURE, source, folder]
    told = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    for line in told.stdout.splitlines()[-2:]:
        peak, size = map(int, line.split())
        assert size / 2 < peak < size + shard
