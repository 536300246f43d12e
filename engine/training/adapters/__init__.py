"""Which weights are trained. One module per adapter: its `Options`, and `attach(model, options)`."""
