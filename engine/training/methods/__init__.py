"""Training methods. One module per method, listed in `engine.options.tables.METHODS`.

Its torch-free `Options` declares the settings of a profile; `Options.rows` is the kind of prepared rows that the method
takes, and `Options.method` the location of its `Method` class (see `base`), beside the code that it shares with others.
"""
