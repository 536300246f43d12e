"""What is optimised. One row a method: name -> its options model.

Beside `Options`, whose `rows` says which kind of prepared rows the method takes, its module has `build(parts)`: the trainer, an
`engine.training.trainer.Steered` in front of the library's.
"""
