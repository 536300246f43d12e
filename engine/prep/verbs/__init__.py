"""The commands `cockpit data …`, `cockpit tokenizer …` and `cockpit profile new`.

Each has an entry in `VERBS`; its module has `run(home, arguments, progress) -> dict`, which returns the document that
`--json` prints.

`arguments` are the options that the command line declares; `progress` gets (phase, done, total).
"""

VERBS = {
    "data inspect": "engine.prep.verbs.inspect",
    "data validate": "engine.prep.verbs.validate",
    "data clean": "engine.prep.verbs.clean",
    "data dedup": "engine.prep.verbs.dedup",
    "data split": "engine.prep.verbs.split",
    "data balance": "engine.prep.verbs.balance",
    "data convert": "engine.prep.verbs.convert",
    "data expand": "engine.prep.verbs.expand",
    "data tokenize": "engine.prep.verbs.tokenize",
    "data stats": "engine.prep.verbs.stats",
    "profile new": "engine.prep.verbs.new_profile",
    "data worst": "engine.prep.verbs.worst",
    "tokenizer train": "engine.prep.verbs.train_tokenizer",
}
