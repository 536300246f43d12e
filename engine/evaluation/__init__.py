"""Measuring models: their loss on rows, and their replies by metrics, by tasks and by a judge."""
