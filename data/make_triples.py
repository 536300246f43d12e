"""Makes the sample set `triples/`: English sentences and the JSON triples that they state.

    python data/make_triples.py          writes train.jsonl, dev.jsonl, test.jsonl beside this file

Seeded: the same bytes each time. People and things are invented. `dev` and `test` speak of names that `train` never
mentions, so that a good score means reading the sentence, not remembering it. No two rows state the same facts.
"""

# ruff: noqa: SIM905 - pools of names read better as words than as forty pairs of quotes

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import NamedTuple

from engine.tasks.triples import messages

ROWS = {"train": 400, "dev": 64, "test": 64}
SEED = 20260

FIRST = (
    "Ada Amara Anton Bruno Carla Clara Daniel Elena Emil Farid Grace Hana Hugo Ines Ivan Jonas "
    "Kenji Lena Leo Lucia Marek Mina Nadia Nils Olga Omar Petra Rosa Samir Tara Victor Yuki"
).split()
LAST = (
    "Abbott Berg Castellan Dorn Ekman Falk Garrido Holt Ibsen Jansen Keller Lindt Moreau Novak Okoye Park Quist Rossi "
    "Sato Tanaka Ulrich Varga Weiss Ziegler Adeyemi Brandt Conti Duarte"
).split()
MADE = (
    "Alder Borealis Cobalt Delta Ember Fjord Granite Helix Indigo Juniper Kestrel Lumen Meridian Nimbus Onyx Pioneer "
    "Quartz Raven Summit Tundra Umbra Vector Willow Zenith Apex Bramble Cedar Drift"
).split()
THINGS = (
    "Harbour Garden Winter Lantern Mirror Orchard Voyage Letter Island Bridge Clock Desert River Shadow Storm Tower "
    "Valley Window Forest Crown Meadow Anchor Compass Feather"
).split()
RIVERS = "Arva Belen Corran Dasha Elmo Farn Gelda Hesper Isen Jorva Kalin Lorne Mersa Nerin Orla Pell".split()
CITIES = (
    "Oslo Lyon Porto Quito Lagos Kyoto Cairo Lima Turin Ghent Perth Delhi Leeds Busan Tunis Malmo "
    "Graz Dakar Split Bergen Seville Krakow Hanoi Boston"
).split()
INSTRUMENTS = "violin cello piano flute harp trumpet guitar oboe clarinet drums viola accordion".split()
PRODUCTS = "bicycles turbines cameras batteries tractors lamps sails engines pianos clocks boats drones".split()
HELD_OUT = 4
"""One name in so many is kept from training."""


class Relation(NamedTuple):
    """`phrases` follow the subject and take the object; `inverse` ones follow the object and take the subject."""

    subject: str
    predicate: str
    object: str
    phrases: tuple[str, ...]
    inverse: tuple[str, ...] = ()


RELATIONS = (
    Relation("person", "born in", "city", ("was born in {}", "is a native of {}", "was born and raised in {}")),
    Relation("person", "works for", "company", ("works for {}", "is employed by {}", "has a job at {}")),
    Relation("person", "studied at", "university", ("studied at {}", "graduated from {}", "took a degree at {}")),
    Relation("person", "married to", "person", ("is married to {}", "is the spouse of {}")),
    Relation("person", "plays", "instrument", ("plays the {}", "performs on the {}")),
    Relation(
        "company", "founded by", "person", ("was founded by {}", "was started by {}"), ("founded {}", "set up {}")
    ),
    Relation("company", "based in", "city", ("is based in {}", "has its head office in {}"), ("is home to {}",)),
    Relation("company", "makes", "product", ("makes {}", "produces {}", "is a maker of {}")),
    Relation("film", "directed by", "person", ("was directed by {}", "is a film by {}"), ("directed {}",)),
    Relation("film", "stars", "person", ("stars {}", "features {}"), ("plays the lead in {}",)),
    Relation(
        "book", "written by", "person", ("was written by {}", "is a novel by {}"), ("wrote {}", "is the author of {}")
    ),
    Relation("book", "set in", "city", ("is set in {}", "takes place in {}")),
    Relation("river", "flows through", "city", ("flows through {}", "runs through {}"), ("lies on {}",)),
    Relation("bridge", "crosses", "river", ("crosses {}", "spans {}")),
    Relation("museum", "located in", "city", ("is located in {}", "stands in {}", "can be found in {}")),
    Relation("city", "twinned with", "city", ("is twinned with {}", "is a sister city of {}")),
)

OPENINGS = ("", "", "", "", "As far as we know, ", "According to the report, ", "In this story, ", "Records show that ")


class Stated(NamedTuple):
    """A fact and the words that state it: `subject` + `phrase`, with the object filled in."""

    subject: str
    phrase: str
    triple: dict[str, str]


class Names:
    """Draws names of a kind: those at every HELD_OUT-th place for the held-out sets, all others for training."""

    def __init__(self, random: Random, held_out: bool) -> None:
        self.random, self.held_out = random, held_out

    def draw(self, kind: str) -> str:
        match kind:
            case "person":
                return f"{self.random.choice(FIRST)} {self._pick(LAST)}"
            case "company":
                return f"{self._pick(MADE)} {self.random.choice(('Systems', 'Works', 'Labs', 'Motors', 'Group'))}"
            case "university":
                return f"{self._pick(MADE)} {self.random.choice(('University', 'College', 'Institute'))}"
            case "film":
                return f"The {self._pick(MADE)} {self.random.choice(THINGS)}"
            case "book":
                return f"{self.random.choice(('A', 'The Last', 'Beyond the', 'My'))} {self._pick(THINGS)}"
            case "museum":
                return f"{self._pick(LAST)} Museum"
            case "bridge":
                return f"{self._pick(LAST)} Bridge"
            case "river":
                return f"River {self._pick(RIVERS)}"
        return self._pick({"city": CITIES, "instrument": INSTRUMENTS, "product": PRODUCTS}[kind])

    def _pick(self, pool: list[str]) -> str:
        return self.random.choice([name for at, name in enumerate(pool) if (at % HELD_OUT == 0) == self.held_out])


class Writer:
    """Writes sentences of one to three facts with the names of one set."""

    def __init__(self, random: Random, held_out: bool) -> None:
        self.random, self.names = random, Names(random, held_out)

    def row(self) -> tuple[str, list[dict[str, str]]]:
        """A sentence (or two) and its triples in reading order."""
        count = self.random.choices((1, 2, 3), (10, 7, 3))[0]
        patterns = {
            1: (self._one, self._one_inverse),
            2: (self._joined, self._relative, self._chain),
            3: (self._list, self._joined_chain),
        }
        text, facts = self.random.choice(patterns[count])()
        text = self.random.choice(OPENINGS) + text
        return text[0].upper() + text[1:], [fact.triple for fact in facts]

    def _one(self) -> tuple[str, list[Stated]]:
        fact = self._fact(self.random.choice(RELATIONS))
        return f"{fact.subject} {fact.phrase}.", [fact]

    def _one_inverse(self) -> tuple[str, list[Stated]]:
        relation = self.random.choice([each for each in RELATIONS if each.inverse])
        fact = self._fact(relation)
        phrase = self.random.choice(relation.inverse).format(fact.subject)
        return f"{fact.triple['object']} {phrase}.", [fact]

    def _joined(self) -> tuple[str, list[Stated]]:
        first, second = self._about_one(2)
        return f"{first.subject} {first.phrase} and {second.phrase}.", [first, second]

    def _relative(self) -> tuple[str, list[Stated]]:
        first, second = self._about_one(2)
        return f"{first.subject}, {_pronoun(first.triple['subject_type'])} {first.phrase}, {second.phrase}.", [
            first,
            second,
        ]

    def _chain(self) -> tuple[str, list[Stated]]:
        first = self._fact(self.random.choice([each for each in RELATIONS if each.object in _SUBJECTS]))
        second = self._next(first)
        return f"{first.subject} {first.phrase}, {_pronoun(first.triple['object_type'])} {second.phrase}.", [
            first,
            second,
        ]

    def _list(self) -> tuple[str, list[Stated]]:
        facts = self._about_one(3)
        return f"{facts[0].subject} {facts[0].phrase}, {facts[1].phrase} and {facts[2].phrase}.", facts

    def _joined_chain(self) -> tuple[str, list[Stated]]:
        first, second = self._about_one(2)
        if second.triple["object_type"] not in _SUBJECTS:
            return self._list()
        third = self._next(second)
        return f"{first.subject} {first.phrase} and {second.phrase}. {third.subject} {third.phrase}.", [
            first,
            second,
            third,
        ]

    def _about_one(self, count: int) -> list[Stated]:
        """Different relations of one subject."""
        kind = self.random.choice([kind for kind in _SUBJECTS if len(_SUBJECTS[kind]) >= count])
        relations = list(_SUBJECTS[kind])
        self.random.shuffle(relations)
        subject = self.names.draw(kind)
        return [self._fact(relation, subject) for relation in relations[:count]]

    def _next(self, fact: Stated) -> Stated:
        """A fact about the object of `fact`."""
        return self._fact(self.random.choice(_SUBJECTS[fact.triple["object_type"]]), fact.triple["object"])

    def _fact(self, relation: Relation, subject: str = "") -> Stated:
        subject = subject or self.names.draw(relation.subject)
        target = subject
        while target == subject:
            target = self.names.draw(relation.object)
        triple = {
            "subject": subject,
            "subject_type": relation.subject,
            "predicate": relation.predicate,
            "object": target,
            "object_type": relation.object,
        }
        return Stated(subject, self.random.choice(relation.phrases).format(target), triple)


_SUBJECTS: dict[str, list[Relation]] = {}
for _relation in RELATIONS:
    _SUBJECTS.setdefault(_relation.subject, []).append(_relation)


def _pronoun(kind: str) -> str:
    return "who" if kind == "person" else "which"


def make() -> dict[str, str]:
    """Set name -> the content of its file."""
    random = Random(SEED)
    taken: set[str] = set()
    files = {}
    for name, count in ROWS.items():
        writer = Writer(random, held_out=name != "train")
        lines: list[str] = []
        while len(lines) < count:
            text, triples = writer.row()
            reply = json.dumps(triples, ensure_ascii=False, separators=(",", ":"))
            if reply in taken:
                continue
            taken.add(reply)
            row = {"messages": [*messages(text), {"role": "assistant", "content": reply}]}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        files[name] = "".join(lines)
    return files


if __name__ == "__main__":
    folder = Path(__file__).parent / "triples"
    folder.mkdir(exist_ok=True)
    for name, content in make().items():
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8", newline="\n")
