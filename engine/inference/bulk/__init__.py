"""Replies to a whole file of prompts: `prompts` reads it, `decode` generates on devices, `progress` keeps finished
rows, `job` runs it all."""
