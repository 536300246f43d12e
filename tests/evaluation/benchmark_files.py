"""Benchmarks in the format of lm-evaluation-harness, one of each kind of request, and their rows."""

from __future__ import annotations

import sys
from pathlib import Path

HARNESS = Path(sys.prefix, "lm-eval")
"""Where `make test` installs the harness: beside the virtual environment's packages, so that it slows no other test."""

QUESTIONS = [
    ("The capital of France is", ["Paris", "a banana", "seven"], 0),
    ("Two and two are", ["nine", "four", "blue"], 1),
    ("Water freezes at a temperature of", ["one hundred degrees", "zero degrees", "a horse"], 1),
    ("The opposite of hot is", ["cold", "warm", "soup"], 0),
    ("A dog is an", ["idea", "animal", "hour"], 1),
    ("The sun rises in the", ["east", "west", "kitchen"], 0),
]
CHOICES = """\
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 3.0}
"""
REPLIES = """\
task: completions
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: first-word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
metadata: {version: 1.0}
"""
TEXTS = """\
task: prose
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices[answer]}}."
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 1.0}
"""
