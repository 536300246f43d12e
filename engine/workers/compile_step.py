"""Compiles the decoding step of a model, for `engine.inference.compiled_step`: `--home HOME REQUEST`.

REQUEST is JSON: `base attention dtype device threads path`. The process ends with the one that started it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

from engine.protocol.process import signal_when_parent_ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("request")
    request = json.loads(parser.parse_args().request)
    signal_when_parent_ends(signal.SIGKILL)
    os.nice(10)
    import torch

    from engine.inference.step_program import build

    torch.set_num_threads(request["threads"])
    build(request["base"], request["attention"], request["dtype"], request["device"], Path(request["path"]))


if __name__ == "__main__":
    main()
