"""What is optimised. One row a method: name -> its options model.

Beside `Options`, whose `rows` says which kind of prepared rows the method takes, its module has `build(parts)`: the trainer, an
`engine.training.trainer.Steered` in front of the library's.
"""

METHODS = {
    "sft": "engine.training.methods.sft:Options",
    "pretrain": "engine.training.methods.pretrain:Options",
    "reward": "engine.training.methods.reward:Options",
    "dpo": "engine.training.methods.dpo:Options",
    "kto": "engine.training.methods.kto:Options",
    "orpo": "engine.training.methods.orpo:Options",
    "grpo": "engine.training.methods.grpo:Options",
    "rloo": "engine.training.methods.rloo:Options",
}

ROWS = {
    "tokens": "text or conversations, as token ids with labels",
    "pairs": "a prompt with a chosen and a rejected reply",
    "judged": "a prompt with one reply and whether it was good",
    "prompts": "prompts to answer, with what a reward needs to know",
}
"""Kinds of prepared rows, and what each is in words."""
