"""Workers for `bench.inference`: they say what time it is instead of tokens."""
