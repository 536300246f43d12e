"""What a profile says about data."""

from __future__ import annotations

from engine.protocol.options import Options, option


class SourceOptions(Options):
    source: str = option(help="A file, a path in the bundled data/, or hf://org/name.", min_length=1)
    format: str = option("auto", help="Shape of the rows; auto looks at the first ones.")
    weight: float = option(1.0, help="Times that each row is seen in an epoch; 0.5 takes a seeded half.", gt=0)
    max_rows: int | None = option(None, help="Take at most so many rows.", unit="rows", ge=1)


class DataOptions(Options):
    train: list[SourceOptions] = option(help="Training sources.", min_length=1)
    validation: list[SourceOptions] = option([], help="Held-out sources, for evaluation while training.")
    test: list[SourceOptions] = option([], help="Sources for the final evaluation.")
    max_length: int = option(1024, help="Longest sequence; longer rows are cut at the end.", unit="tokens", ge=8)
    packing: bool = option(False, help="Put several rows into one sequence, with attention kept apart.")
    template: str = option("auto", help="Chat template: auto takes the model's own; or a path to a Jinja file.")
    max_rows: int | None = option(None, help="Take at most so many training rows in all.", unit="rows", ge=1)
    max_rejected: float = option(0.01, help="Share of bad rows beyond which a launch is refused.", ge=0, le=1)
