"""The base shared out over processes: real processes, which talk over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, PreTrainedModel

from recipe_hf.training.sharding import check_launch, shard
from tests.tiny_recipe import tiny_base

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
OTHERS = [
    GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=100, **TOKENS),
    BertConfig(num_hidden_layers=3, is_decoder=True, **SIZES, **TOKENS),  # Its embeddings are a block too.
]


def bases() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    return [lm.requires_grad_(False).eval() for lm in [tiny_base(), *map(AutoModelForCausalLM.from_config, OTHERS)]]


def steer(lm: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, the gradient of embeddings put in, and what the base says."""
    embeds = lm.get_input_embeddings()(torch.arange(10).view(2, 5)).requires_grad_()
    logits = lm(inputs_embeds=embeds).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), embeds)
    return logits.detach(), gradient, lm.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)


def compare_in_process(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    try:
        for lm in bases():
            expected = steer(lm)
            shard(lm, torch.device("cpu"))
            blocks = [p for p in lm.parameters() if isinstance(p, DTensor)]
            assert blocks and sum(p.to_local().numel() for p in blocks) < 0.6 * sum(p.numel() for p in blocks)
            for _ in range(2):
                for wanted, found in zip(expected, steer(lm), strict=True):
                    torch.testing.assert_close(found, wanted)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_each_of_two_processes_holds_a_share_and_the_base_is_the_same(tmp_path: Path):
    torch.multiprocessing.spawn(compare_in_process, (str(tmp_path),), nprocs=2)


def test_a_base_of_unknown_blocks_is_refused():
    lm = tiny_base()
    lm._no_split_modules = None
    with pytest.raises(ValueError, match="shard_base must be false .* 'llama': its blocks are unknown"):
        shard(lm, torch.device("cpu"))


def test_a_base_whose_blocks_share_weights_is_refused():
    lm = tiny_base()
    lm.model.layers[1].mlp = lm.model.layers[0].mlp
    with pytest.raises(ValueError, match="type 'llama': its blocks share weights"):
        shard(lm, torch.device("cpu"))


@pytest.mark.parametrize("launch", [DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_launches_that_shard_what_is_trained_are_refused(launch: DistributedType):
    with pytest.raises(ValueError, match=rf"must start plain processes \(--multi_gpu\), got {launch.value}"):
        check_launch(launch, 2, shard_base=True)


def test_one_process_has_nothing_to_share():
    check_launch(DistributedType.NO, 1, shard_base=False)
    check_launch(DistributedType.MULTI_GPU, 2, shard_base=True)
    with pytest.raises(ValueError, match="shard_base must be false with one process"):
        check_launch(DistributedType.NO, 1, shard_base=True)
