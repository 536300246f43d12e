"""Stands for a library: as it is imported it reads one variable, sets and removes others, and copies all."""

import os

FOUND = os.environ.get("LIBRARY_READS")
os.environ.setdefault("LIBRARY_SETS", "1")
os.environ["LIBRARY_FORCES"] = "1"
if "LIBRARY_REMOVES" in os.environ:
    del os.environ["LIBRARY_REMOVES"]
COPIES = [dict(os.environ), os.environ.copy(), dict(os.environ.items()), os.environ | {"MORE": "1"}]
