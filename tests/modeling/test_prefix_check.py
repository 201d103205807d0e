from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from recipe_hf.modeling.frozen_base import load_base
from recipe_hf.modeling.prefix import CACHE_NAMES, accepts
from tests.tiny import CONFIGS, VOCAB_SIZE, tiny_causal_lm

CACHE = next(name for name in CACHE_NAMES if accepts(tiny_causal_lm("llama"), name))


class OtherCacheLlama(LlamaForCausalLM):
    """As a release would be in which `generate` and `forward` call the cache by a name that we do not know."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs[CACHE] = kwargs.pop("kv_store", None) or kwargs.get(CACHE)
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["kv_store"] = inputs.pop(CACHE)
        return inputs

    def forward(self, input_ids: Any = None, attention_mask: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        kwargs[CACHE] = kwargs.pop("kv_store", cache)
        return super().forward(input_ids, attention_mask, **kwargs)


class RefusingLlama(LlamaForCausalLM):
    """Breaks at the second token, as a cache with another interface would."""

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if input_ids.shape[1] > 3:
            raise AttributeError("'State' object has no attribute 'get_seq_length'")
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)


def _llama(cls: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return cls(LlamaConfig(**CONFIGS["llama"][1], vocab_size=VOCAB_SIZE, initializer_range=0.3)).eval()


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bases_that_hold_a_prefix_are_taken(architecture: str, dtype: torch.dtype) -> None:
    lm = tiny_causal_lm(architecture).to(dtype)
    assert load_base(lm) is lm


def test_a_cache_by_an_unknown_name_is_refused_rather_than_written_past() -> None:
    lm = _llama(OtherCacheLlama)
    ids = torch.tensor([[5, 6, 7]])
    plain = _llama(LlamaForCausalLM)
    assert lm.generate(ids, max_new_tokens=4).tolist() == plain.generate(ids, max_new_tokens=4).tolist()
    with pytest.raises(ValueError, match=r"got OtherCacheLlama .* with transformers 5.*, which writes other text"):
        load_base(lm)


def test_a_generate_that_breaks_behind_a_prefix_is_refused() -> None:
    lm = _llama(RefusingLlama).train()
    with pytest.raises(ValueError, match=r"got RefusingLlama .*AttributeError: 'State' object"):
        load_base(lm)
    assert lm.training and all(parameter.requires_grad for parameter in lm.parameters())
    assert not lm._forward_pre_hooks


def test_recurrent_models_are_refused() -> None:
    lm = MambaForCausalLM(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    with pytest.raises(ValueError, match=r"got MambaForCausalLM \(model type 'mamba'\)"):
        load_base(lm)


def test_the_trial_leaves_random_numbers_and_gradients_alone() -> None:
    lm = tiny_causal_lm("gpt2", seed=3, resid_pdrop=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    load_base(lm.train())
    assert torch.equal(torch.get_rng_state(), state)
    assert not lm.training
    logits = lm(inputs_embeds=torch.ones(1, 2, 32, requires_grad=True)).logits
    logits.sum().backward()
