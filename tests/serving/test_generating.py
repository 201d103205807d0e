from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from recipe_hf.serving.engine import Closed, Failed, Full, Piece, Prompt, Sampling
from recipe_hf.serving.generating import TransformersEngine
from tests.tiny_recipe import GREEDY, MIXED, PROMPTS, UNRELATED, assert_same, batch_of, edited_recipe


class Asking:
    """Prompts of an engine, waited for in this thread."""

    def __init__(self, engine: TransformersEngine, prompts: Sequence[Prompt]) -> None:
        self.pieces: queue.Queue[tuple[int, Piece | Failed]] = queue.Queue()
        self.prompts = prompts
        self.cancel = engine.submit(prompts, lambda *piece: self.pieces.put(piece))

    def answers(self) -> list[list[Piece]]:
        """The pieces of each prompt."""
        answers: list[list[Piece]] = [[] for _ in self.prompts]
        while not all(pieces and pieces[-1].finish_reason for pieces in answers):
            number, piece = self.pieces.get(timeout=60)
            if isinstance(piece, Failed):
                raise piece
            answers[number].append(piece)
        return answers

    def texts(self) -> list[str]:
        return ["".join(piece.text for piece in pieces) for pieces in self.answers()]


@pytest.fixture(scope="module")
def model():
    return edited_recipe()


@pytest.fixture
def engine(model) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model, max_batch_size=8)
    yield engine
    engine.close()


def prompt(model, text: str, query: str | None = None, **sampling) -> Prompt:
    chosen = Sampling(**{"max_tokens": 6, "temperature": 0.0} | sampling)
    return Prompt(model.tokenizer(text)["input_ids"], text if query is None else query, chosen)


def alone(model, text: str, lm=None, **options) -> str:
    batch = batch_of(model, [text])
    out = (lm or model).generate(**batch, **GREEDY | options)
    return model.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_each_row_says_what_it_says_alone(model, engine):
    asking = Asking(engine, [prompt(model, text, max_tokens=number + 3) for number, text in enumerate(MIXED)])
    answers = asking.answers()
    for number, (text, pieces) in enumerate(zip(MIXED, answers, strict=True)):
        assert "".join(piece.text for piece in pieces) == alone(model, text, max_new_tokens=number + 3)
        assert (pieces[-1].num_tokens, pieces[-1].finish_reason) == (number + 3, "length")
        assert_same([pieces[-1].retrieval], model.retrieve(text))
    assert answers[0][-1].retrieval.num_prompt_tokens == 3 and answers[1][-1].retrieval.num_prompt_tokens == 0


def test_a_row_that_looks_nothing_up_is_the_bases(model, engine):
    texts = Asking(engine, [prompt(model, PROMPTS[0], query=""), prompt(model, PROMPTS[0])]).texts()
    assert texts == [alone(model, PROMPTS[0], model.lm), alone(model, PROMPTS[0])]
    assert texts[0] != texts[1]


def test_rows_sample_apart_and_a_seed_repeats_a_row_in_any_batch(model, engine):
    def sampled(seed: int | None, **more) -> Prompt:
        return prompt(model, UNRELATED[0], temperature=1.0, seed=seed, max_tokens=12, **more)

    first, other, greedy, top = Asking(
        engine, [sampled(1), sampled(2), prompt(model, PROMPTS[1]), sampled(None, top_k=1)]
    ).texts()
    (again,) = Asking(engine, [sampled(1)]).texts()
    assert first == again != other
    assert greedy == alone(model, PROMPTS[1])
    assert top == alone(model, UNRELATED[0], max_new_tokens=12)


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-320])
def test_a_temperature_near_zero_is_greedy_and_harms_no_other_row(model, engine, temperature):
    text = PROMPTS[0]
    hot, cold = Asking(engine, [prompt(model, text, temperature=temperature), prompt(model, text)]).texts()
    assert hot == cold == alone(model, text)


def test_a_stop_string_ends_its_row_alone_and_is_not_shown(model, engine):
    whole = alone(model, PROMPTS[0], max_new_tokens=12)
    stop = whole[4:6]
    stopped, other = Asking(
        engine,
        [prompt(model, PROMPTS[0], stop=(stop,), max_tokens=12), prompt(model, PROMPTS[0], max_tokens=12)],
    ).answers()
    assert "".join(piece.text for piece in stopped) == whole[: whole.index(stop)]
    assert stopped[-1].finish_reason == "stop" and stopped[-1].num_tokens < 12
    assert "".join(piece.text for piece in other) == whole


def test_penalties_and_bias_change_their_row_only(model, engine):
    (plain,) = Asking(engine, [prompt(model, UNRELATED[1])]).answers()
    token = model.tokenizer("q")["input_ids"][0]
    biased, penalized, again = Asking(
        engine,
        [
            prompt(model, UNRELATED[1], logit_bias={token: 1000.0}),
            prompt(model, UNRELATED[1], logit_bias={token: 1000.0}, presence_penalty=2000.0),
            prompt(model, UNRELATED[1]),
        ],
    ).texts()
    assert biased == "q" * 6
    assert penalized.count("q") == 1
    assert again == "".join(piece.text for piece in plain)


def test_logprobs_are_those_of_the_model(model, engine):
    (pieces,) = Asking(engine, [prompt(model, PROMPTS[0], logprobs=3)]).answers()
    told = [token for piece in pieces for token in piece.logprobs]
    batch = batch_of(model, [PROMPTS[0]])
    out = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert [token.id for token in told] == out.sequences[0, -6:].tolist()
    for token, logits in zip(told, out.logits, strict=True):
        expected = logits[0].float().log_softmax(-1)
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-4)
        assert [id for id, _ in token.top] == expected.topk(3).indices.tolist()


def test_more_than_may_wait_are_refused_all_together(model):
    engine = TransformersEngine(model, max_batch_size=2, max_waiting=3)
    try:
        running = Asking(
            engine, [prompt(model, PROMPTS[0], max_tokens=200), prompt(model, PROMPTS[1], max_tokens=200)]
        )
        running.pieces.get(timeout=60)
        waiting = Asking(engine, [prompt(model, PROMPTS[2])])
        with pytest.raises(Full) as refused:
            Asking(engine, [prompt(model, text) for text in PROMPTS[:3]])
        assert refused.value.retry_after >= 1
        running.cancel()
        assert waiting.texts() == [alone(model, PROMPTS[2])]
    finally:
        engine.close()


def test_a_prompt_joins_a_batch_that_runs_and_both_say_what_they_say_alone(model, engine):
    long = Asking(engine, [prompt(model, PROMPTS[0], max_tokens=400), prompt(model, UNRELATED[0], max_tokens=380)])
    long.pieces.get(timeout=60)
    for text in (PROMPTS[1], UNRELATED[1]):
        assert Asking(engine, [prompt(model, text)]).texts() == [alone(model, text)]
    before = long.pieces.qsize()
    rest = long.texts()
    assert before < 700
    for said, text, tokens in zip(rest, (PROMPTS[0], UNRELATED[0]), (400, 380), strict=True):
        assert alone(model, text, max_new_tokens=tokens).endswith(said) and len(said) > tokens / 2


def test_what_is_cancelled_ends_early(model, engine):
    long = Asking(engine, [prompt(model, PROMPTS[0], max_tokens=400)])
    long.pieces.get(timeout=60)
    long.cancel()
    assert Asking(engine, [prompt(model, PROMPTS[1])]).texts() == [alone(model, PROMPTS[1])]
    assert long.pieces.qsize() < 390


def test_closing_ends_what_was_taken(model):
    engine = TransformersEngine(model, max_batch_size=1)
    asking = Asking(engine, [prompt(model, text, max_tokens=20) for text in PROMPTS[:3]])
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert asking.texts() == [alone(model, text, max_new_tokens=20) for text in PROMPTS[:3]]
    closing.join(60)
    assert not closing.is_alive() and not engine.is_ready()
    with pytest.raises(Closed):
        Asking(engine, [prompt(model, PROMPTS[0])])


def test_a_batch_that_fails_is_told_and_the_next_is_served(model, engine):
    broken = Prompt([len(model.tokenizer) + 5], "x", Sampling(3))
    with pytest.raises(Failed):
        Asking(engine, [broken]).answers()
    assert Asking(engine, [prompt(model, PROMPTS[0])]).texts() == [alone(model, PROMPTS[0])]
