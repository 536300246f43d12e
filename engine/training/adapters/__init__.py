"""Which weights move. One row an adapter: name -> its options model."""

ADAPTERS = {
    "none": "engine.training.adapters.none:Options",
    "lora": "engine.training.adapters.lora:Options",
    "rslora": "engine.training.adapters.rslora:Options",
    "dora": "engine.training.adapters.dora:Options",
    "ia3": "engine.training.adapters.ia3:Options",
    "oft": "engine.training.adapters.oft:Options",
    "prefix": "engine.training.adapters.prefix:Options",
    "prompt": "engine.training.adapters.prompt:Options",
}
