"""Checkpoints in parts: a retriever that serves every base, and prompts that name it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from recipe_hf import RecipeForCausalLM
from recipe_hf.modeling.configuration import RETRIEVER_NAME
from recipe_hf.modeling.weights import retriever_fingerprint
from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MIXED,
    PROMPTS,
    assert_same,
    base_tokenizer,
    batch_of,
    edited_recipe,
    tiny_base,
    verified_recipe,
)

load: Any = RecipeForCausalLM.from_pretrained
WIDE = {"hidden_size": 48, "seed": 3}


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def config_in(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def written(model: RecipeForCausalLM) -> list[list[int]]:
    return model.generate(**batch_of(model, MIXED), **GREEDY).tolist()


@pytest.fixture(scope="module")
def model() -> RecipeForCausalLM:
    return edited_recipe()


@pytest.fixture(scope="module")
def saved(model: RecipeForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts of a model, side by side."""
    directory = tmp_path_factory.mktemp("parts")
    model.save_pretrained(directory / "retriever", parts="retriever", include_knowledge=False)
    model.save_pretrained(directory / "prompts", parts="prompts", retriever=directory / "retriever")
    return directory


@pytest.fixture
def parts(saved: Path, tmp_path: Path) -> Path:
    """A copy of them, elsewhere."""
    return Path(shutil.copytree(saved, tmp_path / "parts"))


@pytest.fixture(scope="module")
def wide(saved: Path) -> RecipeForCausalLM:
    """A model of a wider base with prompts of its own, and the same retriever."""
    base = tiny_base("gpt2", n_embd=WIDE["hidden_size"], seed=WIDE["seed"])
    options = {"prompt_form": "continuous", "num_continuous_prompt_tokens": 2}
    model = RecipeForCausalLM.from_base_pretrained(
        base, retriever=saved / "retriever", tokenizer=base_tokenizer(), **options
    )
    torch.nn.init.normal_(model.prompt_encoder.output.weight, std=0.2)
    return model


# ---------------------------------------------------------------------- taken apart, and put together


def test_each_part_holds_its_own_weights_and_files(saved: Path):
    retriever, prompts = (load_file(saved / part / "model.safetensors") for part in ("retriever", "prompts"))
    assert {name.partition(".")[0] for name in retriever} == {"retriever"}
    assert {name.partition(".")[0] for name in prompts} == {"prompt_encoder"}
    names = files(saved / "retriever")
    assert "encoder/tokenizer.json" in names and not names & {"tokenizer.json", "generation_config.json"}
    names = files(saved / "prompts")
    assert {"tokenizer.json", "knowledge/knowledge.jsonl"} <= names and "encoder/tokenizer.json" not in names
    config = config_in(saved / "prompts")
    assert config["retriever_name_or_path"] == "../retriever" and config["retriever_revision"] is None
    assert config_in(saved / "retriever")["base_fingerprint"] is None


@pytest.mark.parametrize("load", [load, AutoModelForCausalLM.from_pretrained])
def test_prompts_bring_the_retriever_beside_them(model: RecipeForCausalLM, parts: Path, load: Any):
    loaded = load(parts / "prompts", base_model=tiny_base())
    assert written(loaded) == written(model)
    assert_same(loaded.retrieve(MIXED), model.retrieve(MIXED))
    assert not loaded.training and not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_put_together_it_is_the_checkpoint_that_it_was(model: RecipeForCausalLM, parts: Path, tmp_path: Path):
    model.save_pretrained(tmp_path / "whole")
    load(parts / "prompts", base_model=tiny_base()).save_pretrained(tmp_path / "joined")
    whole, joined = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "joined"))
    assert whole.keys() == joined.keys() and all(torch.equal(whole[name], joined[name]) for name in whole)
    assert files(tmp_path / "whole") == files(tmp_path / "joined")
    assert config_in(tmp_path / "joined")["retriever_name_or_path"] is None
    shutil.rmtree(parts)
    assert written(load(tmp_path / "joined", base_model=tiny_base())) == written(model)


def test_a_checkpoint_of_before_is_loaded_as_it_was(model: RecipeForCausalLM, tmp_path: Path):
    model.save_pretrained(tmp_path)
    new = {"prompt_form", "prompt_position", "retriever_name_or_path", "retriever_revision", "retriever_fingerprint"}
    config = {name: value for name, value in config_in(tmp_path).items() if name not in new}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path, base_model=tiny_base())
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert written(loaded) == written(model)


def test_the_verifier_comes_with_the_retriever_and_its_settings_too(tmp_path: Path):
    model = verified_recipe(offset=0.5, of_margin=0.1)
    model.save_pretrained(tmp_path / "retriever", parts="retriever")
    model.save_pretrained(tmp_path / "prompts", parts="prompts", retriever=tmp_path / "retriever")
    assert "verifier.safetensors" not in files(tmp_path / "prompts")
    config = config_in(tmp_path / "retriever") | {"verifier_gap": 2.5}
    (tmp_path / "retriever" / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path / "prompts", base_model=False)
    assert loaded.config.verifier_gap == 2.5 and loaded.config.num_verified_facts == 4
    model.save_pretrained(tmp_path / "whole")
    whole = load(tmp_path / "whole", base_model=False, verifier_gap=2.5)
    assert [hit.probability for hit in loaded.retrieve(MIXED)] == [hit.probability for hit in whole.retrieve(MIXED)]
    unverified = load(tmp_path / "prompts", base_model=False, verifier=False, top_k_facts=2)
    assert (unverified.verifier, unverified.config.num_verified_facts, unverified.config.top_k_facts) == (None, 0, 2)


@pytest.mark.parametrize("load", [load, AutoModelForCausalLM.from_pretrained])
def test_fields_given_at_load_take_the_place_of_the_retrievers(parts: Path, load: Any):
    model = load(parts / "prompts", base_model=tiny_base(), top_k_facts=2, similarity_scale=0.5)
    assert (model.config.top_k_facts, model.config.similarity_scale) == (2, 0.5)


def test_a_checkpoint_of_prompts_is_read_as_text_too(parts: Path):
    model = load(parts / "prompts", base_model=tiny_base(), prompt_form="text")
    assert model.prompt_encoder is None and model.generate(**batch_of(model, PROMPTS), **GREEDY).shape[0] == 4


# ---------------------------------------------------------------------- the retriever alone


def test_a_retriever_alone_looks_up_and_explains(model: RecipeForCausalLM, parts: Path):
    alone = load(parts / "retriever", base_model=False)
    alone.add_knowledge(FACTS)
    assert_same(alone.retrieve(MIXED), model.retrieve(MIXED))
    assert alone.explain(PROMPTS[0]).candidates[0].fact.statement == model.knowledge[0].statement


def test_a_retriever_alone_serves_any_base_as_text(parts: Path, tmp_path: Path):
    expected = RecipeForCausalLM.from_base_pretrained(
        tiny_base("gpt2", n_embd=48), retriever=parts / "retriever", tokenizer=base_tokenizer()
    )
    base_directory = tmp_path / "base"
    tiny_base("gpt2", n_embd=48).save_pretrained(base_directory)
    base_tokenizer().save_pretrained(base_directory)
    attached = load(parts / "retriever", base_model=base_directory)
    assert attached.config.hidden_size == 48 and attached.config.base_model_name_or_path == str(base_directory)
    for each in (expected, attached):
        each.add_knowledge(FACTS)
    assert written(expected) == written(attached)
    with pytest.raises(ValueError, match="prompt_form must be 'text' for the checkpoint .*, which has no prompt"):
        load(parts / "retriever", base_model=tiny_base(), prompt_form="continuous")


def test_two_bases_with_prompts_of_their_own_serve_one_file_of_facts(
    wide: RecipeForCausalLM, parts: Path, tmp_path: Path
):
    first = load(parts / "prompts", base_model=tiny_base())
    wide.save_pretrained(parts / "wide", parts="prompts", retriever=parts / "retriever")
    second = load(parts / "wide", base_model=tiny_base("gpt2", n_embd=48, seed=3))
    assert second.config.hidden_size == 48 != first.config.hidden_size
    first.open_knowledge(tmp_path / "facts.db")
    first.add_knowledge(FACTS)
    keys, expected = first.knowledge.keys([0, 1, 2, 3]).clone(), written(first)
    first.knowledge.close()
    # Keys that were made anew could not be written here.
    second.open_knowledge(tmp_path / "facts.db", read_only=True)
    assert [hit.fired for hit in second.retrieve(MIXED)] == [True, False, True, False]
    assert torch.equal(second.knowledge.keys([0, 1, 2, 3]), keys)
    output = second.generate(**batch_of(second, MIXED), **GREEDY, return_dict_in_generate=True)
    assert [hit.num_prompt_tokens for hit in output.retrievals] == [2, 0, 2, 0]
    second.knowledge.close()
    first.open_knowledge(tmp_path / "facts.db")
    assert written(first) == expected
    first.knowledge.close()


# ---------------------------------------------------------------------- which retriever


def test_where_a_retriever_was_taken_from_is_named_unasked(wide: RecipeForCausalLM, saved: Path, tmp_path: Path):
    wide.save_pretrained(tmp_path / "wide", parts="prompts")
    named = config_in(tmp_path / "wide")["retriever_name_or_path"]
    assert named.startswith("../") and (tmp_path / "wide" / named).resolve() == (saved / "retriever").resolve()
    base = tiny_base("gpt2", n_embd=48, seed=3)
    loaded = load(tmp_path / "wide", base_model=base)
    loaded.save_pretrained(tmp_path / "deep" / "again", parts="prompts")
    assert written(load(tmp_path / "deep" / "again", base_model=base)) == written(loaded)


def test_a_hub_id_is_named_as_it_is(model: RecipeForCausalLM, tmp_path: Path):
    model.save_pretrained(tmp_path, parts="prompts", retriever="org/retriever", retriever_revision="v1")
    config = config_in(tmp_path)
    assert (config["retriever_name_or_path"], config["retriever_revision"]) == ("org/retriever", "v1")
    assert config["retriever_fingerprint"] == retriever_fingerprint(model.retriever)


def test_the_commit_that_a_retriever_was_taken_from_is_named_with_it(model: RecipeForCausalLM, tmp_path: Path):
    taken = model.with_knowledge(model.knowledge)
    taken.config = copy.deepcopy(model.config)
    fingerprint = retriever_fingerprint(model.retriever)
    taken.config.update(dict(zip(RETRIEVER_NAME, ("org/retriever", "c0ffee", fingerprint), strict=True)))
    for name, expected in (("org/retriever", "c0ffee"), ("org/copy", None)):
        taken.save_pretrained(tmp_path / name, parts="prompts", retriever=name)
        assert config_in(tmp_path / name)["retriever_revision"] == expected


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_copy_of_the_retriever_may_be_given_instead(
    model: RecipeForCausalLM, parts: Path, tmp_path: Path, dtype: torch.dtype | None
):
    model.save_pretrained(tmp_path / "copy", parts="retriever", dtype=dtype)
    shutil.rmtree(parts / "retriever")
    with pytest.raises(OSError, match=r"retriever_name_or_path='\.\./retriever', could not .* Give it as retriever="):
        load(parts / "prompts", base_model=tiny_base())
    loaded = load(parts / "prompts", base_model=tiny_base(), retriever=tmp_path / "copy")
    assert [hit.fired for hit in loaded.retrieve(MIXED)] == [True, False, True, False]
    if dtype is None:
        assert written(loaded) == written(model)


@pytest.mark.parametrize("tensor", ["mlp_k.input.bias", "mlp_q.input.bias", "sentinel_embeds", "standardizer.std"])
def test_a_retriever_with_other_weights_is_refused_by_name(parts: Path, tmp_path: Path, tensor: str):
    other = load(parts / "retriever", base_model=False)
    with torch.no_grad():
        other.retriever.state_dict()[tensor].flatten()[0] += 0.1
    other.save_pretrained(tmp_path / "other")
    for options in ({"retriever": tmp_path / "other"}, {}):
        if not options:
            other.save_pretrained(parts / "retriever", parts="retriever")
        message = r"retriever must be the one .* '\.\./retriever' with weights of .*, whose weights are others"
        with pytest.raises(ValueError, match=message):
            load(parts / "prompts", base_model=tiny_base(), **options)
    model = edited_recipe()
    with pytest.raises(ValueError, match="retriever must be a checkpoint with the weights of this model's, got"):
        model.save_pretrained(tmp_path / "new", parts="prompts", retriever=tmp_path / "other")
    assert not (tmp_path / "new").exists()


def test_a_retriever_that_was_trained_on_is_named_no_more(wide: RecipeForCausalLM, saved: Path, tmp_path: Path):
    base = tiny_base("gpt2", n_embd=48, seed=3)
    wide.save_pretrained(tmp_path / "wide", parts="prompts")
    model = load(tmp_path / "wide", base_model=base)
    with torch.no_grad():
        model.retriever.sentinel_embeds[0, 0] += 0.1
    for name in (model.config.retriever_name_or_path, "org/retriever"):
        model.config.retriever_name_or_path = name
        with pytest.raises(ValueError, match="whose weights are others: save the model's with parts='retriever'"):
            model.save_pretrained(tmp_path / "new", parts="prompts")
    assert not (tmp_path / "new").exists()


def test_another_base_is_refused(parts: Path):
    with pytest.raises(ValueError, match="input embeddings of width 32, as .* has, got 48"):
        load(parts / "prompts", base_model=tiny_base("gpt2", n_embd=48))


def test_what_cannot_be_saved_or_loaded_is_refused(model: RecipeForCausalLM, parts: Path, tmp_path: Path):
    text = RecipeForCausalLM.from_base_pretrained(tiny_base(), retriever=parts / "retriever")
    new, prompts = tmp_path / "new", {"parts": "prompts"}
    for each, place, options, message in [
        (model, new, {"parts": "both"}, "parts must be 'all', 'retriever' or 'prompts', got 'both'"),
        (model, new, prompts, "retriever must be the directory or Hub id of a checkpoint with this model's, got None"),
        (model, new, prompts | {"retriever": "./nowhere"}, "retriever must be a directory that exists, or a Hub id"),
        (model, new, {"retriever": parts / "retriever"}, "retriever must be None for parts='all'"),
        (model, parts / "retriever", prompts | {"retriever": parts / "retriever"}, "must not be the retriever's own"),
        (model, new, prompts | {"retriever": parts / "prompts"}, "retriever must be a checkpoint that has one of its"),
        (text, new, prompts, "parts must be 'all' or 'retriever' for a model whose prompt_form is 'text'"),
    ]:
        before = files(tmp_path)
        with pytest.raises((OSError, ValueError), match=message):
            each.save_pretrained(place, **options)
        assert files(tmp_path) == before
    with pytest.raises(ValueError, match="retriever must be None for a checkpoint that has its own"):
        load(parts / "retriever", base_model=False, retriever=parts / "retriever")
    config = config_in(parts / "prompts") | {"retriever_name_or_path": "."}
    (parts / "prompts" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="retriever must be a checkpoint that has one of its own"):
        load(parts / "prompts", base_model=tiny_base())
