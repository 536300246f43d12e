"""`python -m engine` starts nothing: it says what does."""

import sys

USAGE = """engine is a package of libraries, and no command.

cockpit                        the app; `cockpit --help` lists the verbs, which start an engine where they need one
python -m cockpit              the same
cockpit engine start           start the engine alone"""

if __name__ == "__main__":
    print(USAGE, file=sys.stderr)
    sys.exit(2)
