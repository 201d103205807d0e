"""An evaluation puts prompts where the model itself puts them."""

from __future__ import annotations

import pytest

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.asking.saying import EXTRA_TOKENS
from recipe_hf.evaluation.measuring.editing import evaluate_editing
from tests.tiny_recipe import FACTS, UNRELATED, bos_tokenizer, tiny_recipe

EXAMPLES = [
    EditExample(prompt=prompt, answer=answer, rephrasings=(prompt,), unrelated=((unrelated, "rain"),))
    for (prompt, answer), unrelated in zip(FACTS, UNRELATED, strict=False)
]


@pytest.mark.parametrize("protocol", ["strict", "generation"])
def test_what_is_measured_is_what_the_model_says(protocol: str):
    said = {}
    for position in ("before_bos", "after_bos"):
        model = tiny_recipe(prompt_position=position)
        model.tokenizer = bos_tokenizer()
        outcomes = evaluate_editing(model, EXAMPLES, protocol=protocol).outcomes
        model.add_knowledge([f"{prompt} {answer}" for prompt, answer in FACTS])
        for outcome in outcomes:
            batch = model.tokenizer(outcome.query, return_tensors="pt")
            if protocol == "generation":
                length = len(outcome.answer) + 1 + EXTRA_TOKENS  # One token to a byte, and a space.
                new = model.generate(**batch, max_new_tokens=length, do_sample=False)[0, batch["input_ids"].shape[1] :]
                assert outcome.output == model.tokenizer.decode(new, skip_special_tokens=True).strip()
            elif outcome.concerns:
                whole = model.tokenizer(f"{outcome.query} {outcome.answer}", return_tensors="pt").input_ids
                start = batch["input_ids"].shape[1]
                logits = model(whole, queries=[outcome.query]).logits[0, start - 1 : -1]
                share = (logits.argmax(-1) == whole[0, start:]).float().mean().item()
                assert outcome.accuracy == pytest.approx(share)
        said[position] = [(o.output, o.accuracy) for o in outcomes]
    assert said["before_bos"] != said["after_bos"]
