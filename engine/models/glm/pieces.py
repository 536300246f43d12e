"""Reads the sentencepiece file of a ChatGLM folder, and checks that it is complete and of the expected kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from engine.models.weights import is_lfs_pointer
from engine.protocol.messages import Problem, ProblemError

UNIGRAM, BPE = 1, 2
"""`trainer_spec.model_type`, see sentencepiece_model.proto. So are the types of pieces:"""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Pieces(NamedTuple):
    """`content` is the file's bytes, `listed` the pieces by id."""

    content: bytes
    listed: list[Piece]


def read(path: Path, model_type: int, charsmap: bool) -> Pieces:
    """Read the file at `path`. Raises ProblemError when it is missing, damaged, or not like ChatGLM's files.

    `charsmap` says whether its normaliser changes characters. Both kinds of file put a space before a text, write
    spaces as U+2581 and unknown characters as bytes.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        content = path.read_bytes()
    except OSError as error:
        raise unusable_file(path, error.strerror or str(error)) from None
    if is_lfs_pointer(path):
        raise unusable_file(path, "it is a git-lfs pointer, not the file")
    proto: Any = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise unusable_file(path, "it is cut short or damaged: no sentencepiece model can be read from it") from None
    trained, normalised = proto.trainer_spec, proto.normalizer_spec
    listed = [Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    found = {piece.text for piece in listed}
    lacking = sum(f"<0x{byte:02X}>" not in found for byte in range(256))
    if not listed or len(listed) != trained.vocab_size or len(found) != len(listed):
        raise unusable_file(path, f"it is cut short or damaged: {len(found)} pieces of {trained.vocab_size}")
    if trained.model_type != model_type or not trained.byte_fallback or lacking:
        kinds = {UNIGRAM: "Unigram", BPE: "BPE"}
        raise unusable_file(
            path, f"it is not a {kinds[model_type]} model with all 256 bytes, as this generation's file is"
        )
    as_published = normalised.add_dummy_prefix and normalised.escape_whitespaces
    if not as_published or bool(normalised.precompiled_charsmap) != charsmap:
        raise unusable_file(path, "its normaliser is not this generation's")
    if {piece.kind for piece in listed} - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}:
        raise unusable_file(path, "it has unused pieces, which this generation's file does not have")
    return Pieces(content, listed)


def unusable_file(path: Path, cause: str) -> ProblemError:
    """The error of a tokenizer file that cannot be used, because of `cause`."""
    return ProblemError(
        Problem(
            code="tokenizer.unusable",
            title=f"The tokenizer file {path.name} in {path.parent} cannot be used",
            cause=cause,
            hint=f"copy {path.name} again from where the model came from",
        )
    )
