"""Stands for a library: it reads one variable and sets another as it is imported."""

import os

FOUND = os.environ.get("LIBRARY_READS")
os.environ.setdefault("LIBRARY_SETS", "1")
