"""Compiles the decoding step of a model, for `engine.inference.compiled_step`: `--home HOME REQUEST`.

REQUEST is JSON: `base attention dtype device threads path`. The process ends with the one that started it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("request")
    request = json.loads(parser.parse_args().request)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    import torch

    from engine.inference.step_program import build

    torch.set_num_threads(request["threads"])
    build(request["base"], request["attention"], request["dtype"], request["device"], Path(request["path"]))


if __name__ == "__main__":
    main()
