"""The metrics of one reply and of many, against values computed by hand and by the libraries themselves."""

from __future__ import annotations

import json
import unicodedata

import pytest
import regex  # type: ignore[import-untyped]
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from engine.metrics import tokens
from engine.metrics.metric import load_metric
from engine.metrics.words import words
from engine.tasks import triples
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import summed

ENGLISH = [
    ("The cat sat on the mat, and the dog lay by the door.", "The cat is on the mat and a dog lies by the door."),
    ("Paris is the capital of France.", "The capital of France is Paris."),
    ("no overlap whatsoever here", "entirely different words in this one"),
]
CHINESE = [("北京是中国的首都。", "中国的首都是北京。"), ("善意的谎言可以接受。", "善意的谎言不可以接受。")]
JAPANESE = [("東京は日本の首都です。", "日本の首都は東京です。")]


def measured(name: str, answers: list[Answer]) -> dict[str, float]:
    metric = load_metric(name)
    assert metric.metrics and metric.tally
    return metric.metrics(summed(map(metric.tally, answers)))


def answers(pairs: list[tuple[str, str]]) -> list[Answer]:
    return [Answer(reply, reference) for reply, reference in pairs]


def test_rouge_is_the_librarys_own_on_english() -> None:
    plain = RougeScorer(["rougeL"])
    expected = [plain.score(reference, reply)["rougeL"].fmeasure for reply, reference in ENGLISH]
    assert measured("rouge", answers(ENGLISH)) == {"rouge_l": pytest.approx(sum(expected) / 3)}
    assert 0 < sum(expected) / 3 < 1


def test_rouge_compares_chinese_by_character() -> None:
    # 中国的首都 is common, in order: 5 of 8 characters on both sides
    assert measured("rouge", answers(CHINESE[:1])) == {"rouge_l": pytest.approx(5 / 8)}
    assert words("在Tokyo的3个人, don't_go!") == ["在", "tokyo", "的", "3", "个", "人", "don", "t", "go"]


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ("लड़का", "लड़की"),  # boy, girl
        ("கண்", "கண"),
        ("क", "कि"),
        ("বই", "বউ"),
        ("שָׁלוֹם", "שָׁלֵם"),
        ("كِتَاب", "كُتَّاب"),
        ("แม่", "แม้"),
        ("ကား", "ကီး"),
    ],
)
def test_words_that_differ_in_their_marks_are_different_words(reply: str, reference: str) -> None:
    assert measured("rouge", answers([(reply, reference)]))["rouge_l"] < 1
    assert measured("rouge", answers([(reply, reply)]))["rouge_l"] == 1


@pytest.mark.parametrize("text", ["café", "Tiếng Việt", "한국어 낱말", "naïve Ångström", "ガギグ"])
@pytest.mark.parametrize("metric", ["rouge", "exact_match"])
def test_a_word_is_the_same_word_in_every_normal_form(text: str, metric: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text and words(decomposed) == words(text)
    assert set(measured(metric, answers([(decomposed, text), (text, decomposed)])).values()) == {1}


@pytest.mark.parametrize(
    "text", ["हिन्दी भाषा में", "தமிழ் நாடு", "العربيّة لغة", "Don't stop_it, it's 3.5", "ქართული ენა", "नमस्ते"]
)
def test_no_word_is_split_inside_a_cluster_and_no_letter_is_lost(text: str) -> None:
    clusters = regex.findall(r"\X", text)
    found = words(text)
    assert "".join(found) == "".join(each for each in clusters if regex.match(r"[\p{L}\p{N}]", each)).lower()
    assert not any(regex.match(r"\p{M}", word) for word in found)


def test_thai_is_compared_by_character_with_its_marks() -> None:
    assert words("แม่ไป") == ["แ", "ม่", "ไ", "ป"]
    # "mother goes to market" and "… to school" share แ ม่ ไ ป of 8 and 11
    score = measured("rouge", answers([("แม่ไปตลาด", "แม่ไปโรงเรียน")]))["rouge_l"]
    assert score == pytest.approx(2 * (4 / 8) * (4 / 11) / (4 / 8 + 4 / 11))


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh"), (JAPANESE, "char")])
def test_bleu_is_sacrebleus_over_the_corpus(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    replies, references = map(list, zip(*pairs, strict=True))
    expected = sacrebleu.corpus_bleu(replies, [references], tokenize=tokenizer).score
    assert measured("bleu", answers(pairs)) == {"bleu": pytest.approx(expected)}
    assert expected > 0


def test_exact_match_ignores_surrounding_blanks() -> None:
    pairs = [("a b ", "a b"), ("A b", "a b"), ("", "\n")]
    assert measured("exact_match", [*answers(pairs), Answer("no reference")]) == {"exact_match": pytest.approx(2 / 3)}


def test_length_stopping_latency_and_repetition() -> None:
    some = [
        Answer("one two", tokens=3, stopped=True, seconds=1.0),
        Answer("a b c d a b c d a b c d", tokens=12, stopped=False, seconds=2.0),  # 4 distinct of 9 sequences
        Answer("from elsewhere"),
    ]
    assert measured("length", some) == {"reply_characters": (7 + 23 + 14) / 3, "reply_tokens": 7.5}
    assert measured("stopping", some) == {"no_stop_rate": 0.5}
    assert measured("latency", some) == {"latency": 1.5}
    assert measured("repetition", some) == {"repetition": pytest.approx((1 - 4 / 9) / 3)}


def test_triples_of_each_predicate() -> None:
    def listed(*facts: tuple[str, str, str]) -> str:
        keys = ("subject", "predicate", "object")
        return json.dumps(
            [{**dict(zip(keys, fact, strict=True)), "subject_type": "t", "object_type": "t"} for fact in facts]
        )

    breakdown = triples.TASK.breakdown
    assert breakdown
    some = [
        Answer(
            listed(("A", "born in", "B"), ("A", "invented", "Z")), listed(("A", "born in", "B"), ("A", "works at", "C"))
        ),
        Answer("no list", listed(("D", "born in", "E"))),
        Answer(listed(("A", "born in", "B"))),  # nothing to compare it with
    ]
    assert breakdown.metrics(summed(map(breakdown.tally, some))) == {
        "triples_precision.born_in": 1.0,
        "triples_recall.born_in": 0.5,
        "triples_f1.born_in": pytest.approx(2 / 3),
        "triples_precision.works_at": 0.0,
        "triples_recall.works_at": 0.0,
        "triples_f1.works_at": 0.0,
    }


def test_a_mean_loss_is_over_tokens_and_not_over_rows() -> None:
    rows = [tokens.tally(1, 4.0, 0), tokens.tally(3, 2.0, 3)]
    assert tokens.metrics(summed(rows)) == {
        "loss": 1.5,
        "perplexity": pytest.approx(4.4816890703),
        "token_accuracy": 0.75,
    }
