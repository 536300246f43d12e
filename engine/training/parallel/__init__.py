"""How several processes share one training step. One file per strategy, named in `engine.options.tables.STRATEGIES`.

A strategy extends `SingleProcess`. It owns the prepared model and the optimiser. The training loop calls, in order:

prepare(model, make_optimizer)    place or shard the model and make its optimiser; sets `model` and `optimizer`
micro_batch()                     context of one forward and backward pass
reduce()                          gradients become those of the whole global batch, on every rank
clip(max_norm)                    scale the gradients down to this norm; returns the norm before; 0 clips nothing
save()                            the optimiser's state as one process would have it, complete on rank 0
load(file)                        go on from a state that `save` returned, written by any strategy
"""
