"""Editors that look facts up, against slow computations on a tiny model."""

from __future__ import annotations

import pytest
import torch

from recipe_hf.evaluation.editors import EDITORS, EditorOptions, Inputs
from recipe_hf.evaluation.editors.retrieval import (
    RetrievalEditor,
    ThresholdFinder,
    by_statement_prompts,
    in_context,
    statement_of,
)
from recipe_hf.evaluation.editors.thresholds import choose_threshold, questions_to_tune
from recipe_hf.teacher_forcing import tokenize_rows
from tests.tiny_evaluation import EXAMPLES, model, predictions
from tests.tiny_recipe import PROMPTS, UNRELATED

ASKED = [PROMPTS[2], UNRELATED[0], PROMPTS[0]]
ANSWERS = ["Infocom", "four", "Ann Lee"]


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
    inputs = editor.inputs(ASKED)
    assert (inputs.texts, inputs.used) == (ASKED, [2, None, 0])
    with torch.no_grad():
        for prompt, answer, used, said in zip(
            ASKED, ANSWERS, inputs.used, editor.predict(inputs, ANSWERS), strict=True
        ):
            key = None if used is None else model().retriever.encode_statements([statement_of(EXAMPLES[used])])
            prefix = None if key is None else model().prompt_encoder(key)[0]
            assert said == predictions(prompt, answer, prefix)[0]
    editor.undo()
    assert model().knowledge is own


def test_answers_make_further_prompt_tokens_only_if_told():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from tests.tiny_recipe import tiny_recipe

        both = tiny_recipe(num_answer_prompt_tokens=2)
    lengths = {}
    for name in ("recipe", "recipe-statements"):
        editor = EDITORS[name].make(both, EditorOptions())
        editor.edit(EXAMPLES)
        prefix = editor.inputs(ASKED).prefix
        assert prefix is not None
        lengths[name] = prefix[1].sum(1).tolist()
        editor.undo()
    assert lengths == {"recipe": [5, 0, 5], "recipe-statements": [3, 0, 3]}


def test_context_is_text_on_a_line_before_the_prompt():
    editor = edited("context")
    inputs = editor.inputs(ASKED)
    assert inputs == Inputs(
        [f"Zork was written by Infocom.\n{PROMPTS[2]}", UNRELATED[0], f"The CEO of Acme is Ann Lee.\n{PROMPTS[0]}"],
        None,
        [2, None, 0],
    )
    with torch.no_grad():
        for text, answer, said in zip(inputs.texts, ANSWERS, editor.predict(inputs, ANSWERS), strict=True):
            assert said == predictions(text, answer, None)[0]
    editor.undo()


def test_word_embeddings_stand_where_continuous_prompts_did():
    editor = edited("no-prompts")
    inputs = editor.inputs(ASKED)
    with torch.no_grad():
        for prompt, answer, used, said in zip(
            ASKED, ANSWERS, [2, None, 0], editor.predict(inputs, ANSWERS), strict=True
        ):
            prefix = None
            if used is not None:
                ids = model().tokenizer(f"{statement_of(EXAMPLES[used])}.")["input_ids"]
                prefix = model().lm.get_input_embeddings()(torch.tensor(ids))
            assert said == predictions(prompt, answer, prefix)[0]
    assert editor.inputs([UNRELATED[0]]) == Inputs([UNRELATED[0]], None, [None])
    editor.undo()


@pytest.mark.parametrize("name", ["no-sentinel", "neither"])
def test_without_the_sentinel_one_threshold_decides(name: str):
    editor = edited(name)
    threshold = editor.settings["threshold"]
    retriever, scale = model().retriever, model().config.scale
    prompts = [*PROMPTS, *UNRELATED]
    with torch.no_grad():
        keys = retriever.encode_statements([statement_of(e) for e in EXAMPLES])
        scores = retriever.encode_queries(prompts) @ keys.T * scale
    best, nearest = scores.max(1)
    expected = [n if s > threshold else None for s, n in zip(best.tolist(), nearest.tolist(), strict=True)]
    assert editor.inputs(prompts).used == expected
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
    editor = RetrievalEditor(model(), finder, in_context)
    editor.edit(EXAMPLES[:1])
    assert editor.inputs(["near", "far", "else"]).used == [0, None, None]
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
    inputs = editor.inputs(ASKED)
    together = editor.write(inputs, [4, 2, 3])
    assert [len(said) for said in together] == [4, 2, 3]
    for i, prompt in enumerate(ASKED):
        assert editor.write(editor.inputs([prompt]), [len(together[i])]) == [together[i]]
    batch = model().tokenizer(ASKED[0], return_tensors="pt")
    output = model().generate(**batch, max_new_tokens=4, do_sample=False)
    assert output[0, batch["input_ids"].shape[1] :].tolist() == together[0]
    rows = tokenize_rows(model().tokenizer, ASKED, ANSWERS)
    assert len(editor.predict(inputs, ANSWERS)[0]) == len(rows[0].answer_ids)
    editor.undo()


def test_prompts_of_the_statement_are_by_statement():
    assert edited("no-sentinel").teller is by_statement_prompts
