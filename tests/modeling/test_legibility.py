"""Texts in words that the encoder does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipe_hf import Retrieval
from recipe_hf.modeling.legibility import is_legible, unknown_words
from tests.tiny_recipe import FACTS, GREEDY, PROMPTS, assert_same, batch_of, edited_recipe, encoder_tokenizer

KHMER, AMHARIC = "ភ្នំពេញ ជារដ្ឋធានីនៃ", "የኢትዮጵያ ዋና ከተማ"


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer, as BERT has, that knows ASCII: it spells words of that as the tiny encoder's does."""
    spelled = encoder_tokenizer().get_vocab()
    names = {name: id for name, id in spelled.items() if name.isascii() or name == "Ġ"}
    names["[UNK]"] = spelled["Ā"]
    tokenizer = Tokenizer(models.WordPiece(names, unk_token="[UNK]", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement="Ġ", prepend_scheme="never"), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = encoder_tokenizer().backend_tokenizer.post_processor
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def model() -> Any:
    model = edited_recipe()
    expected = model.retrieve(PROMPTS)
    model.retriever.tokenizer = wordpiece()
    assert_same(model.retrieve(PROMPTS), expected)
    return model


def file_under(model: Any, query: str, *facts: Any) -> list[int]:
    """Adds facts as a knowledge base takes them, with keys that fire for a query."""
    with torch.no_grad():
        key = model.retriever.encode_queries([query]) * 100
    fingerprint = model.knowledge.encoder_fingerprint
    return model.knowledge.add(list(facts), key.expand(len(facts), -1), encoder_fingerprint=fingerprint)


ILLEGIBLE = [
    KHMER,
    f"{KHMER} 🚀🚀🚀",
    f"{KHMER} (2024): 55, 17.",
    f"{KHMER} 🚀 2024",
    f"Is it {KHMER}?",
    "🚀🎉",
    "🚀 2024!",
    "១៩៩៩",
    "x" * 150,
]
LEGIBLE = [
    "The launch of Acme is great 🚀",
    "OK 🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀",
    "The capital of កម្ពុជា is",
    "2 + 2 = 4",
    "?!",
    "1999",
    "[UNK] is a token of encoders",
]


@pytest.mark.parametrize("text", ILLEGIBLE, ids=range(len(ILLEGIBLE)))
def test_illegible_texts_are_refused_and_find_nothing(model, text: str):
    before = list(model.knowledge)
    for fact in (text, (text, "Phnom Penh, the capital of the Kingdom"), (text, "7")):
        with pytest.raises(
            ValueError, match=r"facts\[1\] must be in words that the encoder knows, got '.*, of which \d+%"
        ):
            model.add_knowledge(["Ants are small.", fact], truncation=True)
    assert list(model.knowledge) == before
    file_under(model, text, "A fact about anything.")
    nothing = Retrieval(None, None, -torch.inf, 0.0, False)
    assert model.retrieve([PROMPTS[0], text])[1] == nothing
    assert model.explain(text).candidates == () and "unknown to the encoder" in str(model.explain(text))


@pytest.mark.parametrize("text", LEGIBLE, ids=range(len(LEGIBLE)))
def test_legible_texts_are_added_and_found(model, text: str):
    model.add_knowledge([text, (text, "x")])
    (id,) = file_under(model, text, f"{text} at last")
    assert (model.retrieve(text)[0].id, model.retrieve(text)[0].fired) == (id, True)


@pytest.mark.parametrize("answer", ["ភ្នំពេញ", "ភ្នំពេញ ជារដ្ឋធានីនៃ កម្ពុជា ភ្នំពេញ ជារដ្ឋធានីនៃ កម្ពុជា", "🚀", "x" * 50])
def test_an_answer_may_be_anything(model, answer: str):
    (id,) = model.add_knowledge([("The capital is", answer)])
    file_under(model, "The capital", ("The capital is", answer))
    assert model.retrieve("The capital")[0].fired


def test_the_share_and_the_place_are_named(model, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"facts\[0\] must be .* got '{KHMER}', of which 100% is unknown to it"):
        model.add_knowledge([(KHMER, "កម្ពុជា")])
    path = tmp_path / "facts.jsonl"
    path.write_text(f'"Ants are small."\n["Is it {KHMER}", "x"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"facts.jsonl, line 2 must be .* of which 8\d% is unknown"):
        model.import_knowledge(path)
    assert len(model.knowledge) == len(FACTS)


def test_an_illegible_fact_of_before_is_never_found(model):
    query = "x"
    (first,) = file_under(model, query, KHMER)
    assert model.retrieve(query) == [Retrieval(None, None, -torch.inf, model.retrieve(query)[0].threshold, False)]
    batch = batch_of(model, [query])
    assert torch.equal(model.generate(**batch, **GREEDY), model.lm.generate(**batch, **GREEDY))
    (candidate,) = model.explain(query, k=1).candidates
    assert (candidate.fact.id, candidate.fired) == (first, False) and "does not know its words" in candidate.reason
    model.knowledge.remove(first)
    model.knowledge.restore(first)
    assert not model.retrieve(query)[0].fired
    model.config.top_k_facts = 2
    (legible,) = file_under(model, query, "A fact about x.")
    assert (model.retrieve(query)[0].id, model.retrieve(query)[0].others) == (legible, ())


def test_unknown_words_are_not_taken_for_others(model):
    prompt = "The capital of {} is"
    other, own = file_under(
        model, prompt.format("កម្ពុជា"), (prompt.format("ኢትዮጵያ"), "Addis Ababa"), (prompt.format("កម្ពុជា"), "Phnom Penh")
    )
    (hit,) = model.retrieve(prompt.format("កម្ពុជា"))
    assert (hit.id, hit.fired, hit.others) == (own, True, ())
    assert [c.fact.id for c in model.explain(prompt.format("កម្ពុជា")).candidates if c.fired] == [own]
    (hit,) = model.retrieve(prompt.format("ลาว"))
    assert not hit.fired
    fact, *_ = model.explain(prompt.format("ลาว")).candidates
    assert (fact.fact.id, fact.fired) == (other, False) and "the query's" in fact.reason
    model.config.top_k_facts = 2
    (hit,) = model.retrieve(f"កម្ពុជា, ኢትዮጵያ: {prompt.format('both')}, and which one?")
    assert not hit.fired


def test_a_copy_in_other_spelling_is_the_same_word(model):
    file_under(model, "The river of ø is", ("The river of E\u0301\u00d8 is", "Sprang"))
    assert model.retrieve("The river of \u00c9ø is")[0].fired


@pytest.mark.parametrize("text", [*ILLEGIBLE, *LEGIBLE], ids=range(len(ILLEGIBLE + LEGIBLE)))
def test_a_tokenizer_that_spells_all_reads_all(text: str):
    model = edited_recipe()
    assert unknown_words(encoder_tokenizer(), [text]) == [[]]
    file_under(model, text, text)
    assert model.retrieve(text)[0].fired


def test_nothing_is_read_of_what_the_tokenizer_drops():
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    assert unknown_words(tokenizer, ["\u200b\u200b", "a\u200b"]) == [["\u200b\u200b"], []]
    assert not is_legible("\u200b\u200b", ["\u200b\u200b"])
