"""Forecasts what a run will take: device memory, host memory, disk and time, without a card and without weights.

`trace.py` runs the product's own training step on tensors that have shapes and no content; `skeleton.py` makes the base
for it, `simulated.py` the run around it, and `tracker.py` counts bytes. `terms.py` has what such a step cannot show,
each as a small function. `estimate.py` puts everything together, `calibration.py` learns from the errors of earlier
forecasts, and `solver.py` looks for settings that fit. `engine.workers.forecast` is the process that does it.
"""
