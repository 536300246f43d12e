"""How the supervisor hands a job to the worker that it keeps ahead: one frame with the command line and the
environment, and the job's log as a file descriptor beside it.

The same comparison of environments is made at both ends. Variables that decide how the libraries are imported, or that
C code has read by then, are `FIXED`; they and all that Python code has read must be the same. Every other one may
differ, masks of devices among them: nothing has touched a device before the job begins.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping

import msgspec

FIXED = re.compile(
    r"""
      (?!(CUDA|HIP|ROCR|ASCEND_RT)_VISIBLE_DEVICES$ | ONEAPI_DEVICE_SELECTOR$ | HF_TOKEN$ | HUGGING_FACE_HUB_TOKEN$)
      (
        PYTHON | LD_ | GLIBC_TUNABLES$ | MALLOC_ | MIMALLOC_ | (JE|_RJEM)_?MALLOC | ARROW_
      | G?OMP_ | KMP_ | MKL_ | OPENBLAS_ | GOTO_ | BLIS_ | NVPL_ | VECLIB_ | NUMEXPR_ | RAYON_ | ONEDNN_ | DNNL_
      | TBB_ | NPY_ | ATEN_ | OPENSSL_ | TCMALLOC_
      | CUDA_ | CUBLAS | CUDNN_ | NVIDIA_ | HIP_ | HSA_ | AMD_ | ROCM_ | ROCR_ | ZE_ | SYCL_ | UR_ | ONEAPI_ | ASCEND_
      | TORCH | PYTORCH_ | C10_ | KINETO_ | TRITON_ | XLA_ | INDUCTOR_ | BNB_ | BITSANDBYTES_
      | HF_ | HUGGINGFACE_ | TRANSFORMERS_ | TOKENIZERS_ | ACCELERATE_ | TQDM_ | NETWORKX_ | FSSPEC_
      | LC_ | LANG | TZ$ | PATH$ | HOME$ | TMPDIR$ | XDG_ | VIRTUAL_ENV$
      )
    """,
    re.VERBOSE,
)
LARGEST = 1 << 17
"""Bytes of a frame, so that it always fits into the socket's buffer: the supervisor never waits for the worker."""
_LENGTH = 4


class Handover(msgspec.Struct, kw_only=True):
    """`command` is the whole command line, as it would be started."""

    command: list[str]
    environment: dict[str, str]


def find_difference(before: Mapping[str, str], after: Mapping[str, str], read: Iterable[str] = ()) -> str:
    """The first variable that differs and must not, by name; empty when there is none. `read` are those that code has
    read."""
    known = frozenset(read)
    differing = (name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return min((name for name in differing if name in known or FIXED.match(name)), default="")


def send(channel: socket.socket, job: Handover, log: int) -> bool:
    """Hand the job and its log over, whole; False when it has not been taken: then nothing of it will be done."""
    try:
        content = msgspec.msgpack.encode(job)
    except UnicodeEncodeError:  # a variable that is no text: a cold start takes its bytes as they are
        return False
    if len(content) > LARGEST:
        return False
    frame = len(content).to_bytes(_LENGTH, sys.byteorder) + content
    try:
        return socket.send_fds(channel, [frame], [log], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(frame)
    except OSError:  # it has just ended
        return False


def receive(channel: socket.socket) -> tuple[Handover, int] | None:
    """Wait for the job; None when the supervisor has closed its end, or is gone."""
    content, descriptors, *_ = socket.recv_fds(channel, LARGEST + _LENGTH, 1)
    while content and len(content) < _LENGTH + int.from_bytes(content[:_LENGTH], sys.byteorder):
        if not (more := channel.recv(LARGEST)):
            break
        content += more
    if not descriptors or len(content) < _LENGTH + int.from_bytes(content[:_LENGTH], sys.byteorder):
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return msgspec.msgpack.decode(content[_LENGTH:], type=Handover), descriptors[0]
