"""Profiles as files: listing them, checking their text, editing one setting in it."""
