"""Editors that look facts up, against slow computations on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from recipe_hf.evaluation.asking.saying import tokens_added, write
from recipe_hf.evaluation.editors import EDITORS, EditorOptions
from recipe_hf.evaluation.editors.editor import Reading
from recipe_hf.evaluation.editors.finders import ThresholdFinder
from recipe_hf.evaluation.editors.retrieval import ByStatementPrompts, InContext, RetrievalEditor, recipe
from recipe_hf.evaluation.editors.thresholds import choose_threshold, questions_to_tune
from recipe_hf.knowledge.facts import compose_statement
from recipe_hf.modeling.queries import as_chat
from tests.tiny_evaluation import EXAMPLES, model, predictions, prompts_of, said_by, written_by
from tests.tiny_recipe import PROMPTS, UNRELATED, base_tokenizer, bos_tokenizer, tiny_recipe

ASKED = [PROMPTS[2], UNRELATED[0], PROMPTS[0]]
ANSWERS = ["Infocom", "four", "Ann Lee"]
STATEMENTS = [compose_statement(example.prompt, example.answer) for example in EXAMPLES]


def readings(editor: RetrievalEditor, texts: list[str]) -> list[Reading]:
    return editor.read(prompts_of(editor, texts))


def used(editor: RetrievalEditor, texts: list[str]) -> list[int | None]:
    return [reading.found.used if reading.found else None for reading in readings(editor, texts)]


def edited(name: str) -> RetrievalEditor:
    editor = EDITORS[name].make(model(), EditorOptions())
    assert isinstance(editor, RetrievalEditor)
    if editor.finder.threshold is None and EDITORS[name].is_tuned:
        editor.tune(EXAMPLES, EXAMPLES)
    editor.edit(EXAMPLES)
    return editor


def test_recipe_prefixes_the_prompt_of_the_fact_that_fires():
    own = model().knowledge
    editor = edited("recipe-statements")
    assert [reading.ids for reading in readings(editor, ASKED)] == model().tokenizer(ASKED)["input_ids"]
    found = used(editor, ASKED)
    assert found == [2, None, 0]
    with torch.no_grad():
        for prompt, answer, at, said in zip(ASKED, ANSWERS, found, said_by(editor, ASKED, ANSWERS), strict=True):
            key = None if at is None else model().retriever.encode_statements([STATEMENTS[at]])
            prefix = None if key is None else model().prompt_encoder(key)[0]
            assert said == predictions(prompt, answer, prefix)[0]
    editor.undo()
    assert model().knowledge is own


def test_answers_make_further_prompt_tokens_only_if_told():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = tiny_recipe(num_answer_prompt_tokens=2)
    lengths = {}
    for name in ("recipe", "recipe-statements"):
        editor = EDITORS[name].make(both, EditorOptions())
        editor.edit(EXAMPLES)
        found = readings(editor, ASKED)
        lengths[name] = tokens_added(editor, [reading.ids for reading in found], found)
        editor.undo()
    assert lengths == {"recipe": [5, 0, 5], "recipe-statements": [3, 0, 3]}


def test_context_is_text_on_a_line_before_the_prompt():
    editor = edited("context")
    texts = [f"{STATEMENTS[2]}.\n{PROMPTS[2]}", UNRELATED[0], f"{STATEMENTS[0]}.\n{PROMPTS[0]}"]
    assert STATEMENTS[2] == "Zork was written by Infocom"
    assert [reading.ids for reading in readings(editor, ASKED)] == model().tokenizer(texts)["input_ids"]
    with torch.no_grad():
        for text, answer, said in zip(texts, ANSWERS, said_by(editor, ASKED, ANSWERS), strict=True):
            assert said == predictions(text, answer, None)[0]
    editor.undo()


def test_word_embeddings_stand_where_continuous_prompts_did():
    editor = edited("no-prompts")
    said = said_by(editor, ASKED, ANSWERS)
    with torch.no_grad():
        for prompt, answer, at, found in zip(ASKED, ANSWERS, [2, None, 0], said, strict=True):
            prefix = None
            if at is not None:
                ids = model().tokenizer(f"{STATEMENTS[at]}.")["input_ids"]
                prefix = model().lm.get_input_embeddings()(torch.tensor(ids))
            assert found == predictions(prompt, answer, prefix)[0]
    assert readings(editor, [UNRELATED[0]])[0].told is None
    editor.undo()


@pytest.mark.parametrize("name", ["no-sentinel", "neither"])
def test_without_the_sentinel_one_threshold_decides(name: str):
    editor = edited(name)
    threshold = editor.settings["threshold"]
    retriever, scale = model().retriever, model().config.scale
    prompts = [*PROMPTS, *UNRELATED]
    with torch.no_grad():
        keys = retriever.encode_statements(STATEMENTS)
        scores = retriever.encode_queries(prompts) @ keys.T * scale
    best, nearest = scores.max(1)
    expected = [n if s > threshold else None for s, n in zip(best.tolist(), nearest.tolist(), strict=True)]
    assert used(editor, prompts) == expected
    assert None in expected and set(expected) > {0, 1, 2, 3} - {None}


def test_a_finder_without_a_threshold_says_so():
    finder = ThresholdFinder(lambda texts: torch.eye(len(texts)), lambda texts: torch.eye(len(texts)))
    with pytest.raises(RuntimeError, match="no threshold: call tune"):
        finder.find(["a"])


def test_the_threshold_makes_the_most_right_decisions():
    vectors = {"near": [1.0, 0.0], "far": [0.6, 0.8], "else": [0.0, 1.0]}

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([vectors.get(text, [1.0, 0.0]) for text in texts])

    finder = ThresholdFinder(encode, encode, threshold=0.7)
    editor = RetrievalEditor(model(), finder, InContext(model()))
    editor.edit(EXAMPLES[:1])
    assert used(editor, ["near", "far", "else"]) == [0, None, None]
    scores = torch.tensor([0.9, 0.2, 0.8, 0.3, 0.6])
    is_right = torch.tensor([True, False, True, True, False])
    assert choose_threshold(scores, is_right) == pytest.approx(0.7)
    assert choose_threshold(scores, torch.zeros(5, dtype=torch.bool)) > 0.9
    assert choose_threshold(scores, torch.ones(5, dtype=torch.bool)) < 0.2


def test_unrelated_questions_that_are_facts_should_find_them():
    texts, own = questions_to_tune(EXAMPLES, EXAMPLES[1:3])
    assert texts == [*PROMPTS[1:3], EXAMPLES[1].rephrase_prompt, EXAMPLES[2].rephrase_prompt, PROMPTS[0], UNRELATED[2]]
    assert own == [1, 2, 1, 2, 0, None]


def test_generation_is_greedy_under_the_same_inputs():
    editor = edited("recipe-statements")
    together = written_by(editor, ASKED, [4, 2, 3])
    assert [len(said) for said in together] == [4, 2, 3]
    for i, prompt in enumerate(ASKED):
        assert written_by(editor, [prompt], [len(together[i])]) == [together[i]]
    batch = model().tokenizer(ASKED[0], return_tensors="pt")
    output = model().generate(**batch, max_new_tokens=4, do_sample=False)
    assert output[0, batch["input_ids"].shape[1] :].tolist() == together[0]
    editor.undo()


def test_prompts_of_the_statement_are_by_statement():
    assert isinstance(edited("no-sentinel").teller, ByStatementPrompts)


@pytest.mark.parametrize("name", ["recipe", "no-sentinel"])
def test_facts_edited_in_one_after_the_other_are_found_as_those_together(name: str):
    together, after = edited(name), EDITORS[name].make(model(), EditorOptions())
    expected = [(reading.found, reading.told) for reading in readings(together, ASKED)]
    threshold = together.finder.threshold
    together.undo()
    after.finder.threshold = threshold
    for example in EXAMPLES:
        after.edit([example])
    for reading, (found, told) in zip(readings(after, ASKED), expected, strict=True):
        assert reading.told == told and reading.found.used == found.used and reading.found.nearest == found.nearest
        assert reading.found.score == pytest.approx(found.score, rel=1e-4)
    after.undo()


@pytest.mark.parametrize("tokenizer", [base_tokenizer, bos_tokenizer])
def test_hidden_text_is_read_where_the_model_reads_it(tokenizer: Callable[[], Any]):
    told = tiny_recipe(prompt_form="text")
    told.tokenizer = tokenizer()
    editor = recipe(told)
    editor.edit(EXAMPLES)
    prompts, added = prompts_of(editor, ASKED), [len(STATEMENTS[2]) + 2, 0, len(STATEMENTS[0]) + 2]
    if tokenizer is base_tokenizer:
        (chat,) = prompts_of(editor, [as_chat(told.tokenizer, PROMPTS[0])])
        prompts, added = [*prompts, chat._replace(query=PROMPTS[0])], [*added, len(STATEMENTS[0]) + 2]
    read = editor.read(prompts)
    assert tokens_added(editor, [prompt.ids for prompt in prompts], read) == added  # One token to a byte.
    for prompt, said in zip(prompts, write(editor, read, [5] * len(prompts)), strict=True):
        output = told.generate(torch.tensor([prompt.ids]), max_new_tokens=5, do_sample=False)
        assert output[0, len(prompt.ids) :].tolist()[: len(said)] == said
    editor.undo()
