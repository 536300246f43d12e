"""Verbs that start, list, show and steer runs; and on the engine that runs them."""

from __future__ import annotations

from cockpit.command_line.options import DETACH, FORMAT, PROFILE, RUN, SET, Verb, option

START_VERBS = (
    Verb(
        "demo",
        "train the embedded model on the bundled sentences and show what it learnt",
        "demo:demo",
        (option("--headless", action="store_true", help="progress bars instead of the app"), SET),
    ),
    Verb(
        "train",
        "run all stages of a profile, and follow the run",
        "train:train",
        (
            PROFILE,
            SET,
            DETACH,
            option("--output-dir", metavar="DIR", help="publish the final checkpoint there"),
            option(
                "--from",
                choices=("check", "expand", "prepare", "train", "evaluate", "export"),
                metavar="STAGE",
                dest="first",
                help="start at this stage, with the earlier results of this profile's newest run: "
                "check, expand, prepare, train, evaluate or export",
            ),
            option("--no-rehearsal", action="store_true", help="skip the trial step on the longest batch"),
            option(
                "--grid",
                metavar="K=V,V",
                action="append",
                default=[],
                help="a run for each value, and for each combination with those of other --grid",
            ),
            option(
                "--group", metavar="NAME", default="", help="the group that the run joins; a grid's name by default"
            ),
        ),
    ),
    Verb(
        "grid",
        "compare the runs of a grid, or list the grids",
        "grid:grid",
        (option("name", metavar="NAME", nargs="?", help="the grid's name, or `last`"),),
    ),
    Verb(
        "launch-file",
        "print the file with which another system runs a profile",
        "profile:launch_file",
        (
            PROFILE,
            SET,
            option(
                "--for",
                dest="system",
                required=True,
                choices=("slurm", "skypilot", "kubeflow"),
                help="a batch script, a SkyPilot task, or a Kubeflow job",
            ),
        ),
    ),
    Verb(
        "forecast",
        "say what a profile will take: memory, disk and time",
        "tools:forecast",
        (
            option("profile", metavar="PROFILE", nargs="?", help=PROFILE.settings["help"]),
            option("--card", metavar="CARD", help="memory or type of a card, e.g. 24GB or H100 (those of this host)"),
            option("--cards", type=int, metavar="N", help="number of cards (launch.processes)"),
            SET,
            option("--accuracy", action="store_true", help="compare earlier forecasts with what the runs took"),
        ),
    ),
    Verb(
        "fit",
        "look for settings with which a profile fits",
        "tools:fit",
        (
            PROFILE,
            option(
                "--cards", metavar="NxCARD", default="auto", help="e.g. 1x24GB or 8xH100 (auto: those of this host)"
            ),
            SET,
            option("--apply", metavar="FILE", help="write the profile with one of them there"),
            option("--way", type=int, metavar="N", default=1, help="the number of the one that --apply writes (1)"),
        ),
    ),
    Verb("prepare", "read, check and tokenize a profile's data, nothing more", "train:prepare", (PROFILE, SET, DETACH)),
)

RUN_VERBS = (
    Verb(
        "runs",
        "list runs, the newest last",
        "runs:runs",
        (
            option("filter", nargs="*", metavar="FILTER", help="words and field:value, e.g. state:failed 'lr:>1e-4'"),
            option("--state", default="", metavar="STATE", help="only those in this state"),
        ),
    ),
    Verb("show", "show a run's details", "runs:show", (RUN,)),
    Verb(
        "tag",
        "add tags to a run, remove them, or print them",
        "labels:tag",
        (
            RUN,
            option("tags", nargs="*", metavar="TAG", help="one word"),
            option("--remove", action="append", default=[], metavar="TAG", help="take this one off (repeatable)"),
        ),
    ),
    Verb(
        "note",
        "write a note about a run, or print it",
        "labels:note",
        (RUN, option("text", nargs="?", metavar="TEXT", help="replaces the note; empty removes it")),
    ),
    Verb(
        "pin",
        "keep a run at the top of the list",
        "labels:pin",
        (RUN, option("--off", action="store_true", help="let it go")),
    ),
    Verb(
        "group",
        "put a run into a group, or print its group",
        "labels:group",
        (
            RUN,
            option("name", nargs="?", metavar="NAME", help="one word; the group is made by its first run"),
            option("--leave", action="store_true", help="take the run out of its group"),
        ),
    ),
    Verb(
        "queue",
        "list the waiting runs and what each waits for, or change their order",
        "queue:queue",
        (
            option("run", metavar="RUN", nargs="?", help="the waiting run to move: " + str(RUN.settings["help"])),
            option("--priority", type=int, metavar="N", help="from -100 to 100; higher ones start first"),
            option("--first", action="store_true", help="before all others"),
            option("--last", action="store_true", help="behind all others"),
            option("--up", action="store_true", help="one place earlier"),
            option("--down", action="store_true", help="one place later"),
            option("--to", type=int, metavar="PLACE", help="to this place, from 1"),
        ),
    ),
    Verb("watch", "follow a run until it ends, as `train` does", "train:watch", (RUN,)),
    Verb(
        "metrics",
        "print a run's metric values, from its journal",
        "runs:metrics",
        (
            RUN,
            option(
                "--name",
                action="append",
                default=[],
                metavar="NAME",
                help="only this metric, e.g. train/loss (repeatable)",
            ),
            option("--all", action="store_true", help="every attempt's values, superseded ones too"),
        ),
    ),
    Verb(
        "compare",
        "say how runs differ: settings, data, batches, results, cost",
        "compare:compare",
        (
            option("runs", nargs="+", metavar="RUN", help="two runs or more; the first is what the others are held to"),
            option("--no-evaluations", action="store_true", help="do not compare evaluations, which starts the engine"),
        ),
    ),
    Verb(
        "logs",
        "print the output of a run's processes",
        "runs:logs",
        (RUN, option("--follow", "-f", action="store_true", help="keep printing until the run ends")),
    ),
    Verb(
        "plot",
        "draw a run's curves as a picture",
        "tools:plot",
        (
            RUN,
            option(
                "--name",
                action="append",
                default=[],
                metavar="NAME",
                dest="names",
                help="this metric instead of the losses (repeatable)",
            ),
            option("--out", metavar="FILE", help="the PNG to write (one in the run's plots/)"),
        ),
    ),
    Verb(
        "stop",
        "stop a run after its current step, with a checkpoint",
        "runs:stop",
        (RUN, option("--now", action="store_true", help="end its processes at once, without a checkpoint")),
    ),
    Verb("pause", "pause a run at its next step boundary", "runs:pause", (RUN,)),
    Verb(
        "continue",
        "continue a paused run",
        "runs:continue_",
        (
            RUN,
            option("--skip", action="store_true", help="leave out the rows of the batch that is held back"),
            option(
                "--rollback", action="store_true", help="return to the checkpoint before that batch, and leave it out"
            ),
        ),
    ),
    Verb(
        "set",
        "change settings of a running run",
        "runs:set_",
        (RUN, option("changes", nargs="+", metavar="K=V", help="e.g. training.learning_rate=1e-4")),
    ),
    Verb(
        "resume",
        "resume a run that has ended, from a checkpoint",
        "train:resume",
        (
            option("run", metavar="RUN[@STEP]", help="its newest checkpoint, or the one of STEP"),
            option("--from-step", type=int, metavar="STEP", help="as RUN@STEP"),
            option("--steps", type=int, metavar="N", help="go on until this step, also after completion"),
            option("--more", type=int, metavar="N", help="train this many steps more than it has done"),
            SET,
            DETACH,
        ),
    ),
    Verb(
        "fork",
        "make a new profile from that of a run",
        "fork:fork",
        (RUN, option("file", nargs="?", metavar="FILE", help="a new file; without it the profile is printed"), SET),
    ),
    Verb(
        "clean",
        "show what takes room, and remove what nothing needs",
        "clean:clean",
        (
            option("--run", default="", metavar="RUN", help="only the checkpoints of this run"),
            option("--all", action="store_true", help="also what a resume would need, and what was used within a day"),
            option("--yes", action="store_true", help="do not ask; for scripts"),
        ),
    ),
    Verb(
        "delete",
        "delete a run that has ended, with its checkpoints",
        "runs:delete",
        (RUN, option("--yes", action="store_true", help="do not ask; for scripts")),
    ),
)

PROFILE_VERBS = (
    Verb("list", "list the built-in profiles and your own", "profile:list_"),
    Verb("show", "print a profile", "profile:show", (PROFILE, SET)),
    Verb(
        "new",
        "write a profile that trains on a data file, with a base that is on this machine",
        "tools:profile",
        (
            option("--from", metavar="FILE", required=True, dest="source", help="a data file, a folder or a glob"),
            FORMAT,
            option("--name", metavar="NAME", help="name of the profile and its runs (that of the file)"),
            option("--out", metavar="FILE", help="the profile to write (NAME.yaml in this directory)"),
            option("--force", action="store_true", help="replace a file that cockpit has not written"),
        ),
    ),
    Verb("check", "report all problems of a profile", "profile:check", (PROFILE, SET)),
    Verb("schema", "print the JSON Schema of profiles", "profile:schema"),
    Verb(
        "import",
        "make a profile of a configuration of LLaMA-Factory or Axolotl, or of arguments of trl and transformers",
        "profile_import:import_",
        (
            option("file", metavar="FILE", help="a YAML or JSON file"),
            option("--out", metavar="FILE", help="write the profile there instead of printing it"),
        ),
    ),
)

ENGINE_VERBS = (
    Verb("status", "show whether it is running, since when, and its jobs", "engine:status"),
    Verb("start", "start it if it is not running", "engine:start"),
    Verb(
        "stop",
        "stop it; refuses while jobs are live",
        "engine:stop",
        (option("--force", action="store_true", help="stop live jobs too, at once"),),
    ),
    Verb("connect", "start it if need be, and answer another host's cockpit on stdin and stdout", "engine:connect"),
    Verb("reindex", "rebuild the registry from the run directories", "engine:reindex"),
)
