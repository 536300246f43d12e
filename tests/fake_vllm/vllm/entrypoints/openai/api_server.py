"""A stand-in for vLLM's server: its options, `/health` and `/metrics`, a process of its own for the engine, and no ear
for SIGTERM. It writes its arguments and its mask to the file that `FAKE_VLLM` names."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--model", "--tokenizer", "--host", "--served-model-name", "--swap-space"):
        parser.add_argument(name)
    for name in ("--port", "--max-num-seqs", "--tensor-parallel-size", "--max-model-len"):
        parser.add_argument(name, type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--dtype", choices=("auto", "half", "float16", "bfloat16", "float", "float32"), default="auto")
    parser.add_argument("--quantization", choices=("awq", "bitsandbytes", "fp8", "gptq"))
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    parser.add_argument("--lora-modules", nargs="+")
    return parser


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/metrics":
            self.wfile.write(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2.0\n")

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    arguments = build_parser().parse_args()
    engine = subprocess.Popen([sys.executable, "-c", DEAF])
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    told = vars(arguments) | {"mask": mask, "pids": [os.getpid(), engine.pid]}
    Path(os.environ["FAKE_VLLM"]).write_text(json.dumps(told))
    HTTPServer((arguments.host, arguments.port), Handler).serve_forever()
