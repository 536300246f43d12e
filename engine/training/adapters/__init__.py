"""Adapters, which determine the trained weights. One module per adapter: its `Options`, and `attach(model,
options)`."""
