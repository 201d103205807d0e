"""Tests of the model where Hugging Face users meet it: Auto classes, pipelines, remote code, and real models."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

from recipe_hf import RecipeConfig, RecipeForCausalLM
from tests.command import python
from tests.real_models import MINILM, SMOLLM2, needs_real_models
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, tiny_base, tiny_recipe

GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    model = tiny_recipe()
    model.add_knowledge(FACTS)
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A checkpoint that finds its base by itself."""
    directory = tmp_path_factory.mktemp("auto")
    tiny_base().save_pretrained(directory / "base")
    model.config.base_model_name_or_path = str(directory / "base")
    model.save_pretrained(directory / "recipe")
    return directory / "recipe"


def said(code, **environment):
    """What a fresh interpreter prints for `code`."""
    result = python(code, **environment)
    return result.stdout + result.stderr


def test_auto_classes_load_a_checkpoint(model, saved):
    assert isinstance(AutoConfig.from_pretrained(saved), RecipeConfig)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.padding_side == "left"
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert isinstance(loaded, RecipeForCausalLM)
    batch = tokenizer([PROMPTS[0], UNRELATED[0]], return_tensors="pt", padding=True)
    assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))


def test_auto_classes_pass_loading_options_to_the_base(saved):
    loaded = AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
    )
    assert (loaded.dtype, loaded.lm.config._attn_implementation) == (torch.bfloat16, "eager")
    assert loaded.retriever.sentinel_embeds.dtype == torch.float32
    assert loaded.retriever.encoder.config._attn_implementation == "sdpa"


def test_auto_classes_take_another_base(saved, tmp_path):
    tiny_base().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(saved, base_model=str(tmp_path))
    assert loaded.lm.config.name_or_path == str(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(saved, base_model=tiny_base()), RecipeForCausalLM)


def test_a_pipeline_of_a_directory_generates_text(model, saved):
    generator = pipeline("text-generation", model=str(saved))
    batch = model.tokenizer(PROMPTS[0], return_tensors="pt")
    expected = model.tokenizer.decode(model.generate(**batch, **GREEDY)[0], skip_special_tokens=True)
    assert generator(PROMPTS[0], **GREEDY) == [{"generated_text": expected}]


def test_a_pipeline_of_a_model_takes_chats_and_batches(model):
    generator = pipeline("text-generation", model=model, tokenizer=model.tokenizer)
    chat = [{"role": "user", "content": PROMPTS[0]}]
    inputs = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    new = model.generate(**inputs, **GREEDY)[0, inputs.input_ids.shape[1] :]
    expected = model.tokenizer.decode(new, skip_special_tokens=True)
    assert not torch.equal(new, model.lm.generate(**inputs, **GREEDY)[0, inputs.input_ids.shape[1] :])
    (result,) = generator(chat, **GREEDY)
    assert result["generated_text"][-1] == {"role": "assistant", "content": expected}

    together = generator([PROMPTS[1], UNRELATED[2]], batch_size=2, return_full_text=False, **GREEDY)
    alone = [generator(text, return_full_text=False, **GREEDY) for text in (PROMPTS[1], UNRELATED[2])]
    assert together == alone


def test_remote_code_of_a_checkpoint_is_the_library(saved, tmp_path):
    code = f"""
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(saved)!r}, trust_remote_code=True)
print(type(model).__module__, len(model.knowledge))
model.save_pretrained({str(tmp_path)!r})
"""
    assert f"recipe_hf.modeling.model {len(FACTS)}" in said(code, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert (tmp_path / "modeling_recipe.py").read_bytes() == (saved / "modeling_recipe.py").read_bytes()
    assert {path.name for path in tmp_path.glob("*.py")} == {"modeling_recipe.py"}


def test_remote_code_says_what_to_install(saved, tmp_path):
    code = f"""
import sys
sys.modules["recipe_hf"] = None
from transformers import AutoConfig
AutoConfig.from_pretrained({str(saved)!r}, trust_remote_code=True)
"""
    assert "pip install recipe-hf" in said(code, HF_MODULES_CACHE=str(tmp_path))


def test_importing_the_library_leaves_heavy_libraries_out():
    code = "import sys, recipe_hf; print(sorted({'sentence_transformers', 'peft', 'gguf'} & set(sys.modules)))"
    assert said(code).strip() == "[]"


@pytest.mark.slow
@needs_real_models
def test_real_models_from_start_to_finish(tmp_path):
    model = RecipeForCausalLM.from_base_pretrained(
        SMOLLM2, encoder=MINILM, base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    assert (model.config.hidden_size, model.config.encoder_config.hidden_size) == (576, 384)
    model.add_knowledge(["The CEO of Acme is Ann Lee.", ("The mother tongue of Danielle Darrieux is", "English")])
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in (tmp_path / "config.json").read_text()

    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=SMOLLM2)
    assert [fact.id for fact in loaded.knowledge] == [0, 1]
    (hit,) = loaded.retrieve(["The mother tongue of Danielle Darrieux is"])
    assert hit.score == pytest.approx(model.retrieve(["The mother tongue of Danielle Darrieux is"])[0].score, rel=0.01)
    with torch.no_grad():  # The heads are untrained: make both questions fire.
        loaded.retriever.mlp_q.residual.bias += 100 * (
            loaded.knowledge.keys([1])[0] - loaded.retriever.encode_sentinel()
        )
    batch = loaded.tokenizer(["The capital of France is", "The mother tongue of"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out, base = loaded.generate(**batch, **options), loaded.lm.generate(**batch, **options)
    assert [hit.fired for hit in out.retrievals] == [True, True]
    assert ((out.logits[0] - base.logits[0]).abs().amax(1) > 0.01).all()

    loaded.remove_knowledge([0, 1])
    assert torch.equal(loaded.generate(**batch, **options).logits[0], base.logits[0])
    generator = pipeline("text-generation", model=loaded, tokenizer=loaded.tokenizer)
    (result,) = generator(
        [{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=8, do_sample=False
    )
    assert "Paris" in result["generated_text"][-1]["content"]
