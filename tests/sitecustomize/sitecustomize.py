"""Python imports this at its start where a test has put this folder on PYTHONPATH: an engine then has its workers
forked, as `tests.warm_engine` says."""

import os
import sys

if "TESTS_WARM_LIGHT" in os.environ and "engine.supervisor" in sys.orig_argv:
    from tests import warm_engine

    warm_engine.install("engine.supervisor")
