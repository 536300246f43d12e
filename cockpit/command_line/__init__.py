"""The verbs of the command line as tables: their options and help, and the function each one calls."""
