from __future__ import annotations

import threading
import time

import openai
import pytest

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.generating import TransformersEngine
from tests.running_server import serving
from tests.tiny_recipe import FACTS, GREEDY, MIXED, PROMPTS, UNRELATED, batch_of, edited_recipe


@pytest.fixture(scope="module")
def served():
    model = edited_recipe()
    settings = ServerSettings(served_model_name="tiny", max_batch_size=8)
    with serving(create_app(settings, model, TransformersEngine(model, max_batch_size=8))) as running:
        yield running


@pytest.fixture
def client(served):
    with served.openai() as client:
        yield client


def alone(model, text: str, tokens: int = 6, lm=None) -> str:
    batch = batch_of(model, [text])
    out = (lm or model).generate(**batch, **GREEDY | {"max_new_tokens": tokens})
    return model.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def rendered(model, *messages) -> str:
    return model.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "recipe-hf"
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.completions.create(model="gpt-4", prompt="x")


def test_a_completion_is_the_models_own_and_says_which_fact_was_used(served, client):
    model = served.model
    for text in (PROMPTS[0], UNRELATED[0]):
        got = client.completions.create(model="tiny", prompt=text, max_tokens=6, temperature=0)
        assert got.choices[0].text == alone(model, text)
        assert got.choices[0].finish_reason == "length"
        length = len(model.tokenizer(text)["input_ids"])
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (length, 6)
        (hit,) = model.retrieve(text)
        assert got.recipe["fired"] == hit.fired == (text == PROMPTS[0])
        if hit.fired:
            (fact,) = got.recipe["facts"]
            assert (fact["id"], fact["statement"]) == (0, " ".join(FACTS[0]))
            assert fact["score"] == pytest.approx(hit.score) and fact["probability"] == pytest.approx(hit.probability)
            assert got.recipe["num_prompt_tokens"] == 3
        else:
            assert got.recipe["facts"] == []


def test_a_chat_looks_its_last_user_message_up(served, client):
    model = served.model
    messages = [{"role": "system", "content": "Be brief."}, user("Hello"), {"role": "assistant", "content": "Hi"}]
    messages.append(user(PROMPTS[1]))
    got = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=6, temperature=0)
    assert got.choices[0].message.content == alone(model, rendered(model, *messages))
    assert got.recipe["facts"][0]["id"] == 1
    parts = [*messages[:-1], {"role": "user", "content": [{"type": "text", "text": PROMPTS[1]}]}]
    assert (
        client.chat.completions.create(model="tiny", messages=parts, max_tokens=6, temperature=0).choices[0].message
        == got.choices[0].message
    )


def test_facts_can_be_left_out_chosen_and_of_another_namespace(served, client):
    model = served.model
    model.add_knowledge([{"prompt": PROMPTS[0], "answer": "Bo", "metadata": {"source": "x"}}], namespace="other")

    def ask(**recipe):
        options = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 0}
        return client.completions.create(**options, extra_body={"recipe": recipe})

    assert ask(off=True).choices[0].text == alone(model, PROMPTS[0], lm=model.lm)
    assert not ask(off=True).recipe["fired"]
    assert ask(namespace="other").recipe["facts"][0]["statement"] == f"{PROMPTS[0]} Bo"
    assert ask(namespace="other", where={"source": "x"}).recipe["fired"]
    assert not ask(namespace="other", where={"source": "y"}).recipe["fired"]
    assert ask().recipe["facts"][0]["statement"] == " ".join(FACTS[0])
    with pytest.raises(openai.BadRequestError, match="recipe.of"):
        ask(of=True)


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_says_the_same(served, client, chat):
    options = {"model": "tiny", "max_tokens": 12, "temperature": 0, "n": 2}
    if chat:
        whole = client.chat.completions.create(messages=[user(PROMPTS[0])], **options)
        chunks = [*client.chat.completions.create(messages=[user(PROMPTS[0])], **options, stream=True)]
        said = [
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == number)
            for number in (0, 1)
        ]
        assert said == [choice.message.content for choice in whole.choices]
        assert chunks[0].choices[0].delta.role == "assistant"
    else:
        whole = client.completions.create(prompt=PROMPTS[0], **options)
        chunks = [*client.completions.create(prompt=PROMPTS[0], **options, stream=True)]
        said = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == number) for number in (0, 1)]
        assert said == [choice.text for choice in whole.choices]
    assert len(chunks) > 6
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length", "length"]
    assert chunks[0].recipe == chunks[-1].recipe == whole.recipe
    assert all(c.usage is None for c in chunks)


def test_usage_comes_with_a_stream_that_asks_for_it(client):
    options = {"model": "tiny", "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.chat.completions.create(messages=[user("Hi")], **options)
    assert last.choices == [] and last.usage.completion_tokens == 5
    *_, last = client.completions.create(prompt="Hi", **options)
    assert last.choices == [] and last.usage.prompt_tokens == 2


def test_stop_seed_n_and_several_prompts(served, client):
    text = alone(served.model, PROMPTS[0], 12)
    got = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=12, temperature=0, stop=text[4:6])
    assert (got.choices[0].text, got.choices[0].finish_reason) == (text[: text.index(text[4:6])], "stop")
    drawn = [client.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=3, max_tokens=8) for _ in range(2)]
    first, second = ([choice.text for choice in each.choices] for each in drawn)
    assert first == second and len({*first}) == 4
    assert drawn[0].usage.prompt_tokens == 2
    echoed = client.completions.create(model="tiny", prompt="a", echo=True, max_tokens=2, temperature=0)
    assert echoed.choices[0].text == "a" + alone(served.model, "a", 2)


def test_logprobs(served, client):
    chat = client.chat.completions.create(
        model="tiny", messages=[user("Hi")], max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    for token in chat.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 2 and token.logprob == token.top_logprobs[0].logprob <= 0
        assert bytes(token.bytes).decode() == token.token
    got = client.completions.create(model="tiny", prompt="Hi", max_tokens=4, temperature=0, logprobs=2)
    told = got.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 4
    assert told.token_logprobs[0] == max(told.top_logprobs[0].values())


def test_requests_at_the_same_time_share_batches(served, client):
    def looked_up() -> float:
        return served.app.state.metrics.registry.get_sample_value("recipe_retrieval_seconds_count")

    before = looked_up()
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        with served.openai() as own:
            said = own.completions.create(model="tiny", prompt=MIXED[number % 4], max_tokens=20, temperature=0)
            got[number] = said.choices[0].text

    threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    expected = [alone(served.model, text, 20) for text in MIXED]
    assert [got[number] for number in range(16)] == [expected[number % 4] for number in range(16)]
    assert looked_up() < before + 16


def test_what_is_wrong_is_told_as_openai_does(client):
    def refused(**options):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{"model": "tiny", "prompt": "x"} | options)
        assert error.value.type == "invalid_request_error"
        return error.value

    long = refused(prompt="x" * 600)
    assert long.code == "context_length_exceeded" and "maximum context length is 509 tokens" in long.message
    assert refused(max_tokens=2000).code == "context_length_exceeded"
    assert refused(temperature=3).param == "temperature"
    assert refused(prompt="").param == "prompt"
    assert refused(prompt=[1, 100000]).param == "prompt"
    for id in ("x", "-1", "1" * 5000, "100000"):
        assert refused(logit_bias={id: 1}).param == "logit_bias"
    assert refused(stop=[""]).param == "stop"
    assert "colour" in refused(extra_body={"colour": 1}).message
    assert "suffix" in refused(suffix="end").message
    assert "vLLM" in refused(extra_body={"suffix": "end"}).message
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.BadRequestError, match="image_url"):
        image = {"type": "image_url", "image_url": {"url": "http://x"}}
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [image]}])


@pytest.mark.parametrize(
    "content", [b'{"prompt": "\\ud800"}', b"{", b"[]", b'{"prompt": {"a": 1}}', b'{"prompt": [["a"]]}']
)
def test_what_no_client_sends_is_refused_too(served, content):
    with served.http(headers={"Content-Type": "application/json"}) as client:
        answer = client.post("/v1/completions", content=content)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_full_server_says_when_to_come_again():
    model = edited_recipe()
    engine = TransformersEngine(model, max_batch_size=1, max_waiting=1)
    with (
        serving(create_app(ServerSettings(served_model_name="tiny"), model, engine)) as running,
        running.openai() as one,
    ):
        long = one.completions.create(model="tiny", prompt="a", max_tokens=480, stream=True)
        next(iter(long))
        waiting = one.completions.create
        thread = threading.Thread(target=waiting, kwargs={"model": "tiny", "prompt": "b", "max_tokens": 1})
        thread.start()
        until(lambda: engine.metrics.registry.get_sample_value("recipe_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as error:
            one.completions.create(model="tiny", prompt="c")
        assert int(error.value.response.headers["Retry-After"]) >= 1
        long.close()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_generated_for(served, client, stream):
    def counted() -> float:
        return served.app.state.metrics.registry.get_sample_value("recipe_answer_tokens_total")

    if stream:
        chunks = client.completions.create(model="tiny", prompt="a", max_tokens=480, stream=True)
        next(iter(chunks))
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).completions.create(model="tiny", prompt="a", max_tokens=480)
    started = time.perf_counter()
    client.completions.create(model="tiny", prompt="b", max_tokens=1)
    before = counted()
    time.sleep(0.05)
    assert counted() == before and time.perf_counter() - started < 30


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
