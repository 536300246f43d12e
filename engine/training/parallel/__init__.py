"""Parallel strategies: how several processes share a training step. `launch.strategy` -> its class.

A strategy owns the prepared model and the optimiser. The training loop calls, in this order:

prepare(model, make_optimizer)    place or shard the model and make its optimiser; sets `model` and `optimizer`
micro_batch()                     context of one forward and backward pass
reduce()                          gradients become those of the whole global batch, on every rank
clip(max_norm)                    scale the gradients down to this norm; returns the norm before; 0 clips nothing
save()                            the optimiser's state as one process would have it, complete on rank 0
load(file)                        restore a state that `save` returned, written by any strategy

A new strategy is one file and one row here.
"""

STRATEGIES = {
    "single": "engine.training.parallel.single:SingleProcess",
    "ddp": "engine.training.parallel.ddp:DataParallel",
    "zero2": "engine.training.parallel.zero2:Zero2",
}
