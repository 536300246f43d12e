"""The worker that is kept ahead, with small modules in place of the training libraries."""

from engine.workers import ahead

if __name__ == "__main__":
    ahead.MODULES, ahead.FURTHER = ("decimal", "tests.scripted_ahead.library"), ()
    ahead.main()
