"""How several processes share one training step. One file per strategy, named in `engine.options.tables.STRATEGIES`.

A strategy extends `SingleProcess`. It owns the prepared model and the optimiser. A run calls these methods:

configure(profile)                read what the strategy needs of the profile
build(make, device, masters)      make or load the model, on the device of this rank
prepare(model, make_optimizer)    make its optimiser; sets `model` and `optimizer`
load(folder)                      restore the optimiser's state from a checkpoint's `trainer/`, written by any strategy
micro_batch(last)                 context of one forward and backward pass, the last one of a step or not
begin_reduction(failed)           let the coming backward pass sum its gradients over all ranks, unless one has failed
backward(loss)                    compute gradients
end_pass()                        send the gradients that the pass has left
take_waited()                     the seconds in which passes have waited for sums
reduce()                          wait for the sums of all gradients
clip(max_norm)                    scale the gradients down to this norm; returns the norm before; 0 clips nothing
drop()                            drop all gradients
settle()                          drop weights that a pass has gathered
in_step()                         context of forward passes without gradients, whose number differs between ranks
save()                            the optimiser's state, complete on rank 0; of a sharded strategy its groups alone
write_shards(folder, averages)    write this rank's share of the state, where rank 0 does not get all of it
collect(names, dtype)             the weights, on rank 0, where its model does not have them
masters()                         the float32 weights, on rank 0, where its model does not have them
"""
