"""What is optimised. One module per method, named in `engine.options.tables.METHODS`.

Its `Options`, free of torch, says what a profile may set; `Options.rows` which kind of prepared rows the method takes, and
`Options.method` where its `Method` stands (see `base`): in the same file, or beside the mathematics that it shares with others.
"""
