"""Facts to evaluate on tiny models, a model that says some of them, and what it predicts, row by row."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.asking.saying import predict, write
from recipe_hf.evaluation.editors.editor import Editor, Prompt
from recipe_hf.teacher_forcing import answer_logits, tokenize_rows
from recipe_hf.training.losses import editing_loss
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, encoder_tokenizer, tiny_encoder, tiny_recipe

# One rephrasing finds no fact, one finds that of another; one unrelated prompt is not so unrelated.
REPHRASINGS = [PROMPTS[0], UNRELATED[4], PROMPTS[3], PROMPTS[3]]
UNRELATED_PAIRS = [(UNRELATED[0], "four"), (PROMPTS[0], "he is"), (UNRELATED[2], "100 degrees"), (PROMPTS[2], "a b")]
EXAMPLES = [
    EditExample(prompt, answer, prompt, (rephrasing,), (locality,))
    for (prompt, answer), rephrasing, locality in zip(FACTS, REPHRASINGS, UNRELATED_PAIRS, strict=True)
]


@functools.cache
def model() -> RecipeForCausalLM:
    """A model whose prompts were trained until some tokens of the answers are right."""
    model = tiny_recipe()
    rows = tokenize_rows(model.tokenizer, [p for p, _ in FACTS], [a for _, a in FACTS])
    with torch.no_grad():
        keys = model.retriever.encode_statements([f"{p} {a}" for p, a in FACTS])
    optimizer = torch.optim.Adam(model.prompt_encoder.parameters(), 0.003)
    for _ in range(30):
        loss = editing_loss(*answer_logits(model.lm, rows, model.prompt_encoder(keys)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def write_sentence_model(directory: Path, seed: int) -> Path:
    """A sentence-transformers model in a directory."""
    tiny_encoder(seed).save_pretrained(directory / "encoder")
    encoder_tokenizer().save_pretrained(directory / "encoder")
    SentenceTransformer(str(directory / "encoder")).save(str(directory / "sentences"))
    return directory / "sentences"


def predictions(prompt: str, answer: str, prefix: Tensor | None) -> tuple[list[int], list[int]]:
    """Most likely tokens at each position of an answer, and its tokens."""
    lm, tokenizer = model().lm, model().tokenizer
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    embeds = lm.get_input_embeddings()(torch.tensor(prompt_ids + answer_ids))
    embeds = embeds if prefix is None else torch.cat([prefix, embeds])
    predicted = lm(inputs_embeds=embeds.unsqueeze(0), use_cache=False).logits[0].argmax(-1)
    return predicted[-len(answer_ids) - 1 : -1].tolist(), answer_ids


def share(found: list[int], expected: list[int]) -> float:
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


def prompts_of(editor: Editor, texts: list[str]) -> list[Prompt]:
    """Texts as prompts that are looked up as they are."""
    return [Prompt(text, ids, text) for text, ids in zip(texts, editor.tokenizer(texts)["input_ids"], strict=True)]


def said_by(editor: Editor, texts: list[str], answers: list[str]) -> list[list[int]]:
    """The most likely tokens of answers to texts, under an editor."""
    rows = tokenize_rows(editor.tokenizer, texts, answers)
    return predict(editor, editor.read(prompts_of(editor, texts)), [row.answer_ids for row in rows])


def written_by(editor: Editor, texts: list[str], lengths: list[int]) -> list[list[int]]:
    """What is written after texts, under an editor."""
    return write(editor, editor.read(prompts_of(editor, texts)), lengths)
