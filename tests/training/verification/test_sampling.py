from __future__ import annotations

import random
from collections import Counter

import pytest

from recipe_hf.training.verification.mining import Mined
from recipe_hf.training.verification.rows import Chat, VerificationData
from recipe_hf.training.verification.sampling import PairSampler, mistyped
from recipe_hf.training.verification.written import Statement

DATA = VerificationData(
    [
        Statement(
            "a", "Ann lives in Oslo.", ("Where does Ann live?",), (("When was Ann born?", "property"),), "training"
        ),
        Statement("a", "Bo lives in Rome.", ("Where does Bo live?",), (), "training"),
        Statement("b", "Snow is white.", (), (("How cold is snow?", "miss"),), "training"),
        Statement("a", "Kept for development.", ("What is kept?",), (("Why?", "topic"),), "development"),
    ],
    [Chat("chat", "play me a song", "training"), Chat("chat", "never to be seen", "development")],
)
MINED = Mined([["Where does Bo live?"], ["Where does Ann live?"], [], []], [[0, 1], [3]])
SHARES = {"a": 0.6, "b": 0.2, "chat": 0.2}


def sampler(
    data: VerificationData = DATA, mined: Mined = MINED, seed: int = 0, mined_share: float = 0.5
) -> PairSampler:
    return PairSampler(data, mined, SHARES, 16, mined_share, seed)


def test_a_step_follows_from_its_number_alone():
    steps = [sampler().draw(step) for step in range(8)]
    again = sampler()
    assert [again.draw(step) for step in reversed(range(8))] == steps[::-1]
    assert len({str(step) for step in steps}) == 8
    assert sampler(seed=1).draw(0) != steps[0]


def test_asks_and_misses_alternate_and_mates_are_of_one_statement():
    one = sampler()
    pairs = [pair for step in range(100) for pair in one.draw(step)]
    assert len(pairs) == 1600
    for ask, miss in zip(pairs[::2], pairs[1::2], strict=True):
        assert ask.answers and not miss.answers and miss.answer is None
        assert ask.has_mate == miss.has_mate == (ask.statement.lower() == miss.statement.lower())
    assert not any("kept" in pair.query.lower() or "development" in pair.statement.lower() for pair in pairs)
    assert not any("never" in pair.query.lower() for pair in pairs)
    assert not any(pair.answers and pair.statement == "Snow is white." for pair in pairs)


def test_shares_decide_what_is_drawn():
    one = sampler(mined_share=0.25)
    misses = [pair for step in range(400) for pair in one.draw(step) if not pair.answers and pair.query[-1:] == "?"]
    ann = Counter("born" in pair.query.lower() for pair in misses if pair.statement == "Ann lives in Oslo.")
    assert ann[True] / ann.total() == pytest.approx(0.75, abs=0.05)
    every = [pair for step in range(400) for pair in one.draw(step) if not pair.answers]
    chats = [pair for pair in every if "song" in pair.query.lower()[-8:]]  # Not before a question.
    assert len(chats) / len(every) == pytest.approx(0.19, abs=0.03)


def test_queries_are_written_in_many_ways():
    one = sampler()
    asks = {pair.query for step in range(400) for pair in one.draw(step) if "bo live" in pair.query.lower()}
    assert {"Where does Bo live?", "where does bo live?", "Where does Bo live"} < asks
    assert "Play me a song. Where does Bo live?" in asks and "hello Where does Bo live?" in asks


@pytest.mark.parametrize("text", ["x", "Where does Bo live?", "Where does Bo live, and with whom, these days?"])
def test_typing_errors_leave_most_of_a_text(text: str):
    found = {mistyped(text, random.Random(seed)) for seed in range(50)}
    assert len(found) > 3 and all(written and abs(len(written) - len(text)) <= 2 for written in found)


def test_nothing_to_learn_from_is_refused():
    asks_only = VerificationData([DATA.statements[1]], [])
    with pytest.raises(ValueError, match="sources must have statements with misses to train on, got none"):
        sampler(asks_only, Mined([[]], []))
    misses_only = VerificationData([DATA.statements[2]], [])
    with pytest.raises(ValueError, match="sources must have statements with asks to train on, got none"):
        sampler(misses_only, Mined([[]], []))
