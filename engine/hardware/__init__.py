"""Accelerators: which there are, what they report, and which of them a process may see. Loads no training library."""
