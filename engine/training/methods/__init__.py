"""What is optimised. One row a method: name -> its options model."""

METHODS = {
    "sft": "engine.training.methods.sft:Options",
}
