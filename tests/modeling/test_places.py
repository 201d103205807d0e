"""Where prompts stand: what the base says is what it says of the same embeddings at that place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recipe_hf import RecipeConfig, RecipeForCausalLM
from recipe_hf.modeling.places import bos_written, prompt_places
from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MIXED,
    PROMPTS,
    base_tokenizer,
    batch_of,
    bos_tokenizer,
    encoder_tokenizer,
    tiny_base,
    tiny_recipe,
)

CHAT = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def edited(prompt_position: str, architecture: str = "llama", tokenizer: Any = None, **kwargs: Any) -> Any:
    model = tiny_recipe(architecture, prompt_position=prompt_position, **kwargs)
    model.tokenizer = bos_tokenizer(CHAT) if tokenizer is None else tokenizer
    model.add_knowledge(FACTS)
    return model


def row_embeds(model: RecipeForCausalLM, text: str, behind: int, query: str) -> Tensor:
    """The embeddings of a text, with the prompt of the fact that `query` finds behind its first tokens."""
    ids = model.tokenizer(text, add_special_tokens=text == query)["input_ids"]
    embeds = model.lm.get_input_embeddings()(torch.tensor(ids))
    (hit,) = model.retrieve(query)
    prompts = model.prompt_encoder(model.knowledge.keys([hit.id]))[0] if hit.fired else embeds[:0]
    return torch.cat([embeds[:behind], prompts, embeds[behind:]]).detach()[None]


def written_by_row(model: RecipeForCausalLM, texts: list[str], behind: int, queries: list[str]) -> Tensor:
    rows = [row_embeds(model, *each) for each in zip(texts, [behind] * len(texts), queries, strict=True)]
    return torch.cat([model.lm.generate(inputs_embeds=row, **GREEDY) for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen2-sliding"])
@pytest.mark.parametrize(("prompt_position", "behind"), [("before_bos", 0), ("after_bos", 1)])
def test_prompts_stand_before_bos_or_behind_it(prompt_position: str, behind: int, architecture: str, side: str):
    model = edited(prompt_position, architecture)
    batch = batch_of(model, MIXED, side)
    output = model.generate(**batch, **GREEDY, return_dict_in_generate=True)
    written = output.sequences[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == written_by_row(model, MIXED, behind, MIXED).tolist()
    assert [hit.num_prompt_tokens for hit in output.retrievals] == [3, 0, 3, 0]
    logits = model(**batch).logits
    for row, text in enumerate(MIXED):
        found = logits[row][batch["attention_mask"][row].bool()][-1]
        expected = model.lm(inputs_embeds=row_embeds(model, text, behind, text)).logits[0, -1]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_two_places_are_told_apart():
    batch = batch_of(edited("before_bos"), PROMPTS)
    before, after = (edited(position).generate(**batch, **GREEDY) for position in ("before_bos", "after_bos"))
    assert before.tolist() != after.tolist()


@pytest.mark.parametrize(("prompt_position", "behind"), [("before_bos", 0), ("after_bos", 1)])
def test_in_a_chat_too(prompt_position: str, behind: int):
    model = edited(prompt_position)
    texts = [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in MIXED
    ]
    batch = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    written = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == written_by_row(model, texts, behind, MIXED).tolist()


def test_without_inputs_the_base_begins_on_its_own():
    model = edited("after_bos")
    begun = model.generate(queries=[PROMPTS[0]], **GREEDY)
    first = torch.tensor([model.lm.generation_config.bos_token_id])
    prompts = model.prompt_encoder(model.knowledge.keys([0]))[0].detach()
    embeds = torch.cat([model.lm.get_input_embeddings()(first), prompts])[None]
    assert begun[0, 1:].tolist() == model.lm.generate(inputs_embeds=embeds, **GREEDY)[0].tolist()


@pytest.mark.parametrize("tokenizer", [base_tokenizer(), encoder_tokenizer()])
def test_where_the_tokenizer_writes_no_bos_the_place_is_the_beginning(tokenizer: Any):
    # The first of these has a bos token, which begins every turn of its chats, but no text.
    assert bos_written(tokenizer) is None
    outputs = []
    for position in ("before_bos", "after_bos"):
        model = edited(position, tokenizer=tokenizer)
        texts = [f"<|im_start|>user\n{text}<|im_end|>\n" for text in MIXED]
        batch = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        outputs.append(model.generate(**batch, **GREEDY, queries=MIXED))
    assert torch.equal(*outputs)


def test_a_text_that_lacks_bos_is_preceded():
    tokenizer = bos_tokenizer()
    rows = [tokenizer("Snow")["input_ids"], tokenizer("Snow", add_special_tokens=False)["input_ids"], []]
    assert prompt_places(tokenizer, rows, "after_bos").tolist() == [1, 0, 0]
    assert prompt_places(tokenizer, rows[1:], "after_bos") is prompt_places(tokenizer, rows, "before_bos") is None


def test_the_place_is_kept_in_the_checkpoint_and_older_ones_have_theirs(tmp_path: Any):
    edited("after_bos").save_pretrained(tmp_path)
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base())
    assert loaded.config.prompt_position == "after_bos"
    older = {name: value for name, value in loaded.config.to_dict().items() if name != "prompt_position"}
    assert RecipeConfig.from_dict(older).prompt_position == "before_bos"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="prompt_position must be 'before_bos' or 'after_bos', got 'middle'"):
        RecipeConfig(prompt_position="middle")
    model = edited("after_bos")
    embeds = model.get_input_embeddings()(batch_of(model, PROMPTS)["input_ids"])
    with pytest.raises(ValueError, match="inputs_embeds must be None where facts are told as text or behind bos"):
        model.generate(inputs_embeds=embeds, queries=PROMPTS, **GREEDY)
