"""The `openai` client against the server, streaming and not."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.conftest import ENDLESS, Kitchen, Served

pytestmark = pytest.mark.slow

ASKED: Any = [{"role": "user", "content": "w1 w2 w3"}]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def plain(kitchen: Kitchen) -> Any:
    """`model.generate`'s reply to messages."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(kitchen.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(kitchen.model)

    def reply(messages: Any, tokens: int) -> str:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        text: str = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        return text

    return reply


def test_a_greedy_reply_is_that_of_generate_streamed_and_whole(client: openai.OpenAI, plain: Any) -> None:
    wanted = plain(ASKED, 40)
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=40, temperature=0)
    choice = whole.choices[0]
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (wanted, "length", "assistant")
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (
        6,
        40,
        46,
    )
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=ASKED,
            max_completion_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert not any(chunk.usage for chunk in chunks[:-1])
    assert len(chunks) > 5, "it comes in pieces"


async def test_sixteen_concurrent_replies_equal_those_alone(served: Served, plain: Any) -> None:
    async with openai.AsyncOpenAI(base_url=served.address, api_key="none", max_retries=0) as client:
        asked: Any = [
            [{"role": "user", "content": " ".join(f"w{at}" for at in range(index + 1))}] for index in range(16)
        ]
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model="tiny", messages=each, max_tokens=30, temperature=0)
                for each in asked
            )
        )
    assert [answer.choices[0].message.content for answer in answers] == [plain(each, 30) for each in asked]


def test_settings_of_a_request(client: openai.OpenAI, plain: Any) -> None:
    def said(**settings: Any) -> list[str]:
        answer = client.chat.completions.create(model="tiny", messages=ASKED, **({"max_tokens": 20} | settings))
        return [choice.message.content or "" for choice in answer.choices]

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert said(seed=5, temperature=1.0) == said(seed=5), "1 is where the API begins"
    assert len({*said(n=4)}) == 4
    assert said(temperature=0, top_p=0.1) == said(top_p=0) == said(extra_body={"top_k": 1}) == [plain(ASKED, 20)]
    words = plain(ASKED, 20).split(" ")
    stopped = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=20, temperature=0, stop=["nothing", f" {words[1]} "]
    )
    assert stopped.choices[0].message.content == words[0] != words[1] and stopped.choices[0].finish_reason == "stop"
    assert said(temperature=0, user="somebody", metadata={"a": "b"}, extra_body={"new": 1}) == [plain(ASKED, 20)]
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "w1 w2"}, {"type": "text", "text": " w3"}]}]
    answer = client.chat.completions.create(model="tiny", messages=parts, max_tokens=20, temperature=0)
    assert answer.choices[0].message.content == plain(ASKED, 20)


def test_texts_are_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["w1 w2", "w3"], n=2, max_tokens=6, temperature=0)
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] and texts[2] == texts[3] and len({*texts}) == 2
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 24)
    assert (
        client.completions.create(model="tiny", prompt=[5, 6], max_tokens=6, temperature=0).choices[0].text == texts[0]
    )
    streamed = client.completions.create(model="tiny", prompt="w1 w2", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed).startswith(texts[0])
    unsaid = client.completions.create(model="tiny", prompt="w1 w2", temperature=0)
    assert unsaid.usage and unsaid.usage.completion_tokens == 16, "as the API says"


class Scores:
    """The log-probabilities that transformers gives."""

    def __init__(self, model: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def __call__(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.fixture(scope="module")
def scores(kitchen: Kitchen) -> Scores:
    return Scores(kitchen.model)


@pytest.mark.parametrize("length", [3, 700], ids=["short", "in pieces"])
def test_a_prompt_is_scored_as_lm_eval_asks_for_it(client: openai.OpenAI, scores: Scores, length: int) -> None:
    ids = [5 + place * 7 % 50 for place in range(length)]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=1, temperature=0, logprobs=2, echo=True)
    choice, found = answer.choices[0], answer.choices[0].logprobs
    assert found and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    values = scores([*ids, 0])[:-1]
    written = int(values[-1].argmax())
    expected = [values[place, token].item() for place, token in enumerate((*ids[1:], written))]
    assert found.token_logprobs[0] is None and found.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert len(found.tokens) == length + 1 and "".join(found.tokens) == choice.text
    assert choice.text.startswith(scores.tokenizer.decode(ids))
    assert [
        choice.text[begin : begin + len(token)] for begin, token in zip(found.text_offset, found.tokens, strict=True)
    ] == found.tokens
    best = values.topk(2).values
    for place, top in enumerate(found.top_logprobs[1:]):
        assert top and sorted(top.values(), reverse=True) == pytest.approx(best[place].tolist(), abs=1e-4)
        likeliest = values[place].argmax() == (*ids[1:], written)[place]
        assert (found.token_logprobs[place + 1] == max(top.values())) == bool(likeliest)
    assert answer.usage and answer.usage.completion_tokens == 1
    alone = client.completions.create(model="tiny", prompt=ids, max_tokens=0, temperature=0, logprobs=2, echo=True)
    assert alone.choices[0].logprobs and alone.choices[0].logprobs.token_logprobs
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected[:-1], abs=1e-4)
    assert alone.usage and alone.usage.completion_tokens == 0 and alone.choices[0].text == scores.tokenizer.decode(ids)


def test_replies_are_scored_streamed_and_whole_and_among_others(client: openai.OpenAI, scores: Scores) -> None:
    """By the model's own distribution, whatever the temperature, for one row of a batch as alone."""
    settings: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 12, "seed": 3, "temperature": 0.7, "n": 2}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3)
    prompt = scores.tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    for choice in whole.choices:
        assert choice.logprobs and choice.logprobs.content
        tokens = choice.logprobs.content
        ids = scores.tokenizer.convert_tokens_to_ids([each.token.strip() for each in tokens])
        text = scores.tokenizer.decode(ids, skip_special_tokens=True)
        assert choice.message.content == text and len(tokens) == 12
        values = scores([*prompt, *ids])[len(prompt) - 1 : -1]
        assert [each.logprob for each in tokens] == pytest.approx(
            [values[place, token].item() for place, token in enumerate(ids)], abs=1e-4
        )
        for place, each in enumerate(tokens):
            assert bytes(each.bytes or []).decode() == each.token and len(each.top_logprobs) == 3
            assert [top.logprob for top in each.top_logprobs] == pytest.approx(
                values[place].topk(3).values.tolist(), abs=1e-4
            )
    chunks = list(client.chat.completions.create(**settings, logprobs=True, stream=True))
    for index, choice in enumerate(whole.choices):
        mine = [each.choices[0] for each in chunks if each.choices[0].index == index]
        parts = [token for each in mine if each.logprobs for token in each.logprobs.content or []]
        assert choice.logprobs and choice.logprobs.content
        assert [each.token for each in parts] == [each.token for each in choice.logprobs.content]
        assert [each.logprob for each in parts] == pytest.approx(
            [each.logprob for each in choice.logprobs.content], abs=1e-4
        )
    plain = client.chat.completions.create(**settings)
    assert [each.message.content for each in plain.choices] == [each.message.content for each in whole.choices]
    assert all(each.logprobs is None for each in plain.choices)
    streamed = list(
        client.completions.create(
            model="tiny", prompt="w1 w2", echo=True, logprobs=0, max_tokens=4, temperature=0, stream=True
        )
    )
    parts = [each.choices[0].logprobs for each in streamed if each.choices[0].logprobs]
    text = "".join(each.choices[0].text for each in streamed)
    tokens = [token for each in parts for token in each.tokens or []]
    begins = [begin for each in parts for begin in each.text_offset or []]
    assert " <pad>" in tokens and "<pad>" not in text and text.startswith("w1 w2"), "special tokens are left out"
    pieces = [text[begin:end] for begin, end in itertools.pairwise([*begins, len(text)])]
    assert pieces == [token if "<" not in token else "" for token in tokens]


def test_embeddings_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="embeddings are not served"):
        client.embeddings.create(model="tiny", input="w1")


def test_unsupported_fields_are_refused_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt-9' is not served here, only 'tiny'") as missing:
        client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert missing.value.code == "model_not_found"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"top_logprobs": 2}, "top_logprobs goes with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be from 0 to 20, not 21"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not served"),
        ({"logit_bias": {"5": 100}}, "logit_bias is not served"),
        ({"n": 99}, "n times the number of prompts must be from 1 to 16, not 99"),
        ({"n": 0}, "not 0"),
        ({"max_tokens": 0}, "max_tokens should be"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "takes no tools"),
        ({"response_format": {"type": "xml"}}, "'xml' is not served"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "only text"),
    ]
    for settings, why in refused:
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(**({"model": "tiny", "messages": ASKED} | settings))
    assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1, logprobs=False, n=1).choices


def test_a_model_without_a_template_continues_and_does_not_chat(kitchen: Kitchen, tmp_path: Any) -> None:
    bare = shutil.copytree(kitchen.model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    server = kitchen.serve(target=str(bare))
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        with pytest.raises(
            openai.BadRequestError, match="bare has no chat template: it continues texts, at /v1/completions"
        ):
            client.chat.completions.create(model="bare", messages=ASKED)
        assert client.completions.create(model="bare", prompt="w1", max_tokens=3).choices[0].text
        with pytest.raises(
            openai.BadRequestError, match="the prompt has 32 tokens, which leaves no room in a context of 32"
        ):
            client.completions.create(model="bare", prompt=[5] * 32)
        full = client.completions.create(model="bare", prompt=[5] * 30, max_tokens=50, temperature=0)
        assert full.usage and full.usage.completion_tokens == 2 and full.choices[0].finish_reason == "length"
    assert server.stop().returncode == 0


def test_a_key_is_required_and_never_printed(kitchen: Kitchen) -> None:
    refused = kitchen.cockpit("serve", str(kitchen.model), "--host", "0.0.0.0", "--port", "0", "--detach")
    assert refused.returncode == 2 and "0.0.0.0 can be reached from other machines: a key is needed" in refused.stderr
    assert kitchen.cockpit("serve", str(kitchen.model), "--api-key-env", "NO_SUCH_KEY").returncode == 2
    server = kitchen.serve("--host", "0.0.0.0", "--api-key-env", "KITCHEN_KEY", KITCHEN_KEY="s3cret-key")
    local = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=local, api_key="s3cret-key", max_retries=0) as client:
        assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1).choices
    for wrong in ("s3cret-kex", "s3cret-key2", "s"):
        with (
            openai.OpenAI(base_url=local, api_key=wrong, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
    assert server.stop().returncode == 0
    written = [path for path in kitchen.home.root.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert written == [], "a key is kept in memory alone"


def test_limits_of_time_and_of_the_queue(kitchen: Kitchen) -> None:
    server = kitchen.serve("--slots", "1", "--queue", "0", "--timeout", "1.5")
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        first = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=ENDLESS, temperature=0, stream=True
        )
        next(first)
        with pytest.raises(openai.RateLimitError, match="the queue is full"):
            client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1)
        with pytest.raises(openai.APIError, match="longer than this server allows"):
            for _ in first:
                pass
        with pytest.raises(openai.InternalServerError, match="longer than this server allows") as late:
            client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=ENDLESS, temperature=0)
        assert late.value.status_code == 504
        assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1).choices
    assert server.stop().returncode == 0
