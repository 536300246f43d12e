"""Verbs that help when something is wrong, or unclear."""

from __future__ import annotations

from cockpit.command_line.options import RUN, Verb, option

HELP_VERBS = (
    Verb(
        "explain",
        "say what an error or a warning means, how it comes about, and what mends it",
        "explain:explain",
        (option("code", nargs="?", metavar="CODE", help="a code, e.g. memory.exhausted; without one, list them all"),),
    ),
    Verb("why", "say why a run is slow or does not learn, and what to change first", "why:why", (RUN,)),
    Verb(
        "profile-step",
        "record a trace of some steps of a live run, and print the operations that take most",
        "profile_step:profile_step",
        (RUN, option("--steps", type=int, metavar="N", default=3, help="steps to record, 1 to 100 (3)")),
    ),
    Verb(
        "report",
        "print what is known about a run, or make one file of it for whoever is to help",
        "tools:report",
        (
            RUN,
            option(
                "--bundle",
                nargs="?",
                const="",
                metavar="FILE",
                help="write an archive, by default report-RUN.zip, after it was shown",
            ),
            option("--with-rows", action="store_true", help="leave texts of rows and prompts in"),
            option("--with-paths", action="store_true", help="leave paths in"),
            option("--with-names", action="store_true", help="leave names of users and hosts in"),
            option(
                "--no-doctor", action="store_true", help="leave out the checks of `cockpit doctor`, which take a while"
            ),
            option("--yes", action="store_true", help="do not ask; for scripts"),
        ),
    ),
)
