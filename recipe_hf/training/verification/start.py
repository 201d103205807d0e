"""What a run that trains a verifier starts from, and what of it tells the run from others."""

from __future__ import annotations

import json
from typing import Any

from transformers import set_seed

from ...evaluation.inputs import describe_rows, weights_digest
from ...modeling.loading import checkpoint_directory, load_encoder
from ...modeling.model import RecipeForCausalLM
from ...modeling.retriever import Retriever
from ...modeling.verifier import Verifier
from .config import VerifierConfig
from .rows import VerificationData

#: Fields of a configuration that name what is read: its contents tell runs apart, not its name.
NAMES = ("checkpoint", "encoder", "encoder_revision", "verifier", "sources")
#: Fields that say where a run writes, and what it tells.
REPORTING = ("output_dir", "eval_steps", "save_steps", "logging_steps")


def new_verifier(config: VerifierConfig, model: RecipeForCausalLM) -> Verifier:
    """The verifier before the first step: layers of a trained encoder under new heads, or a verifier to train on.

    Raises:
        OSError: If the encoder, or the verifier, cannot be found.
        ValueError: If its layers are not like those of the model's.
    """
    set_seed(config.seed)
    if config.verifier is not None:
        return Verifier.load(checkpoint_directory(config.verifier), model.config).train()
    verifier = Verifier(model.config)
    encoder: Any = model.retriever.encoder
    if config.encoder is not None:
        encoder, _ = load_encoder(config.encoder, revision=config.encoder_revision or "main")
    weights, wanted = encoder.state_dict(), verifier.encoder.state_dict()
    differing = [name for name, tensor in wanted.items() if name not in weights or weights[name].shape != tensor.shape]
    if differing:
        raise ValueError(
            f"encoder must have layers like those of the checkpoint's, got {config.encoder!r}, which differs in "
            f"{len(differing)} tensors, {differing[0]} among them."
        )
    verifier.encoder.load_state_dict({name: weights[name] for name in wanted})
    return verifier


def run_inputs(
    config: VerifierConfig, data: VerificationData, retriever: Retriever, verifier: Verifier
) -> dict[str, Any]:
    """What a run learns depends on this: runs with the same are the same run.

    Args:
        config: What the run is told.
        data: What it reads.
        retriever: The retriever that the verifier stands behind.
        verifier: The verifier before the first step.

    Returns:
        Plain values, as JSON has them: the fields of the configuration but for [`NAMES`] and [`REPORTING`], and what
        the first of these name.
    """
    left_out = (*NAMES, *REPORTING)
    inputs = {
        **{name: value for name, value in config.model_dump().items() if name not in left_out},
        "sources": [{"name": source.name, "share": source.share} for source in config.sources],
        "data": {name: describe_rows(rows) for name, rows in data._asdict().items()},
        "start": {"retriever": weights_digest(retriever), "verifier": weights_digest(verifier)},
    }
    return json.loads(json.dumps(inputs))
