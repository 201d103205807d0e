"""The frozen base shared out over the processes of a run, for one that is too large for a device.

The base alone is sharded, by PyTorch's FSDP: what is trained is small, and each process keeps it whole. No gradient
is reduced and no optimizer state is sharded, since nothing of the base is trained.
"""

from __future__ import annotations

import torch
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

#: Launches in which Accelerate would shard what is trained, which is used by its parts.
_SHARDED_LAUNCHES = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_launch(launch: DistributedType, num_processes: int, shard_base: bool) -> None:
    """Refuses launches that `Trainer` cannot do.

    Args:
        launch: How Accelerate started the processes.
        num_processes: How many there are.
        shard_base: Whether the base is to be sharded.

    Raises:
        ValueError: If Accelerate was told to shard the model, or there is one process to shard the base over.
    """
    if launch in _SHARDED_LAUNCHES:
        raise ValueError(
            f"accelerate launch must start plain processes (--multi_gpu), got {launch.value}: what is trained is "
            "small and stays whole. model.shard_base: true shards the frozen base by FSDP."
        )
    if shard_base and num_processes == 1:
        raise ValueError(
            "model.shard_base must be false with one process: accelerate launch --num_processes starts several."
        )


def shard(lm: PreTrainedModel, device: torch.device) -> None:
    """Gives each process its share of the weights of every block of a frozen base, in place.

    A block's weights are gathered while it computes, and let go afterwards. Embeddings, LM head and norms, which are
    also used apart from the base's own forward, stay whole. From then on, all processes must call `lm` equally often.

    Args:
        lm: A causal LM on the CPU whose weights need no gradients; its type must name its blocks
            (`_no_split_modules`).
        device: Where this process computes.

    Raises:
        ValueError: If no blocks are known, or they have weights in common.
    """
    kinds = set(lm._no_split_modules or ())
    used_apart = {lm.get_input_embeddings(), lm.get_output_embeddings()}
    blocks = [m for m in lm.modules() if type(m).__name__ in kinds and used_apart.isdisjoint(m.modules())]
    inner = {module for block in blocks for module in block.modules() if module is not block}
    blocks = [block for block in blocks if block not in inner]
    weights = [parameter for block in blocks for parameter in block.parameters()]
    if not blocks or len(weights) > len(set(weights)):
        why = "its blocks share weights" if blocks else "its blocks are unknown"
        raise ValueError(f"model.shard_base must be false for a base of type {lm.config.model_type!r}: {why}.")
    in_blocks = {module for block in blocks for module in block.modules()}
    outside = [module for module in lm.modules() if module not in in_blocks]
    for module in outside:
        module._apply(lambda tensor: tensor.to(device), recurse=False)
    whole = {parameter for module in outside for parameter in module.parameters(recurse=False)}
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(lm, mesh=mesh, ignored_params=whole)
