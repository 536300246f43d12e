"""Replies to a whole file of prompts: `prompts` reads it, `record` keeps what is done, `devices` decodes, `job` is the whole of it."""
