"""Which settings of a profile would make a run take less memory, for hints after it has run out."""

from __future__ import annotations

from engine.config.profile import Profile


def list_memory_savings(profile: Profile) -> list[str]:
    """Changes of settings that take less memory, with the profile's own figures; the first keeps the global batch."""
    training, savings = profile.training, []
    rows, steps = training.rows, training.accumulation
    if budget := training.tokens_per_batch:
        savings.append(
            f"training.tokens_per_batch={max(1, budget // 2)} with training.accumulation={steps * 2} "
            f"(now {budget} × {steps})"
        )
    elif rows > 1:
        by = next(divisor for divisor in range(2, rows + 1) if rows % divisor == 0)
        savings.append(
            f"training.micro_batch={rows // by} with training.accumulation={steps * by} "
            f"(now {rows} × {steps}, the same global batch)"
        )
    if not training.gradient_checkpointing:
        savings.append("training.gradient_checkpointing=true")
    if profile.model.quantization == "none" and profile.adapter.kind != "none":
        savings.append("model.quantization=nf4")
    return [*savings, f"a data.max_length below {profile.data.max_length}"]
