"""R-ROME: a patch is applied where the gate of similarity says so, and is ROME's edit there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recipe_hf.evaluation.asking.saying import write
from recipe_hf.evaluation.editors.editor import Prompt
from recipe_hf.evaluation.editors.r_rome import RRome, SimilarityGate
from recipe_hf.evaluation.editors.rome import Rome
from recipe_hf.teacher_forcing import answer_logits, tokenize_rows
from tests.evaluation.editors.memory.editors_at_hand import FACTS, SHORT, changed, key_text, recipe, weights

UNRELATED = "Two plus two makes"


def encode(texts: list[str]) -> torch.Tensor:
    """How often each byte is in a text, of norm 1: near for texts that share their words."""
    counts = [torch.bincount(torch.tensor(list(text.encode())), minlength=128).float() for text in texts]
    return F.normalize(torch.stack(counts), dim=1)


@pytest.mark.parametrize(
    ("similarities", "accepted"),
    [
        ([0.91, 0.9, 0.9], True),  # certain
        ([0.89, 0.88, 0.1], False),  # leads by too little
        ([0.6, 0.4, 0.4, 0.3], True),  # leads, and the few are spread
        ([0.56, 0.4, 0.4, 0.4, 0.4, 0.4], True),
        ([0.55], False),  # leads nobody
        ([0.95], True),
    ],
)
def test_the_gate(similarities: list[float], accepted: bool):
    assert SimilarityGate().accepts(torch.tensor(similarities).flip(0)) is accepted


def test_leading_is_not_enough_where_the_few_are_not_spread():
    few = torch.tensor([0.3, 0.1])
    assert SimilarityGate(lead=0.15, spread=0.05).accepts(few)
    assert not SimilarityGate(lead=0.15, spread=0.2).accepts(few)


def prompts(editor: RRome, texts: list[str]) -> list[Prompt]:
    return [Prompt(text, editor.tokenizer(text)["input_ids"], text) for text in texts]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@torch.no_grad()
def test_a_patched_row_is_that_of_rome_and_others_are_the_bases(architecture: str, tmp_path: Path):
    text = key_text(tmp_path)
    editor = RRome(recipe(architecture), encode, layer=0, text=text, **SHORT)
    copy = weights(editor.lm)
    editor.edit(FACTS[:1])
    editor.edit(FACTS[1:])
    assert not changed(copy, editor.lm)
    # From the shortest to the longest: `answer_logits` has a model read rows in this order.
    texts = [UNRELATED, FACTS[0].prompt, f"{FACTS[0].prompt} who?", FACTS[1].prompt]
    readings = editor.read(prompts(editor, texts))
    used = [reading.found.used for reading in readings]
    assert used == [None, 0, 0, 1] and readings[3].ids == editor.tokenizer(texts[3])["input_ids"]
    rows = tokenize_rows(editor.tokenizer, texts, ["four"] * 4)
    base = answer_logits(editor.lm, rows)[0]
    with editor.answering(rows):
        patched = answer_logits(editor.lm, rows)[0]
    assert torch.equal(answer_logits(editor.lm, rows)[0], base)
    assert torch.allclose(patched[0], base[0], atol=1e-5)
    for position, same in ((0, [1, 2]), (1, [3])):
        rome = Rome(recipe(architecture), 0, text, **SHORT)
        rome.edit([FACTS[position]])
        expected = answer_logits(rome.lm, rows)[0][same]
        assert torch.allclose(patched[same], expected, atol=1e-3)
        assert (patched[same] - base[same]).norm() > 100 * (patched[same] - expected).norm()
    assert write(editor, readings, [5] * 4)[3] == write(rome, readings[3:], [5])[0]
    editor.undo()
    assert [reading.found for reading in editor.read(prompts(editor, texts))] == [None] * 4
    with editor.answering(rows):
        assert torch.equal(answer_logits(editor.lm, rows)[0], base)


def test_of_facts_told_with_the_same_prompt_the_last_is_used(tmp_path: Path):
    editor = RRome(recipe(), encode, layer=0, text=key_text(tmp_path), **SHORT)
    editor.edit([FACTS[0], FACTS[1], FACTS[0]])
    (reading,) = editor.read(prompts(editor, [FACTS[0].prompt]))
    assert reading.found.used == reading.found.nearest == 2 and reading.found.score == pytest.approx(1)
    assert reading.found.threshold == 0.9
