"""Which weights move. One row an adapter: name -> its options model."""

ADAPTERS = {
    "none": "engine.training.adapters.none:Options",
    "lora": "engine.training.adapters.lora:Options",
}
