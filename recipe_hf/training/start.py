"""What a training run starts from, and what of it tells the run from others."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed

from ..datasets import DataSource, EditExample, load_mixture
from ..evaluation.asking.general import load_prompts
from ..evaluation.inputs import describe_rows, digest, model_settings
from ..knowledge import KnowledgeBase
from ..modeling.model import RecipeForCausalLM
from .config import DataConfig, ModelConfig, TrainingConfig
from .wordings import PROPERTIES

#: Fields of a configuration that name what is read: its contents tell runs apart, not its name.
NAMES = {
    "model": {
        *("base_model", "base_model_revision", "encoder", "encoder_revision", "checkpoint"),
        *("retriever", "retriever_revision"),
    },
    "data": {"train_file", "unrelated_texts_file"},
}
#: Fields that say where a run writes, and what it tells.
REPORTING = {
    "run": {
        "output_dir",
        "save_steps",
        "logging_steps",
        "log_with",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "hub_steps",
        "license",
        "language",
    }
}
#: Fields that say how a step is computed. They decide its time, but not, other than by rounding, what is learned.
COMPUTING = {
    "model": {"base_attn_implementation", "shard_base"},
    "objective": {"length_buckets", "pack_rows"},
}
_MODEL_SETTINGS = (
    "weights",
    "encoder_config",
    "similarity_scale",
    "top_k_facts",
    "dtype",
    "base_weights",
    "base_config",
)


class TrainingData(NamedTuple):
    """What a run reads.

    Args:
        examples: The facts of all sources, in order; the last are held out.
        probabilities: How likely each is to be drawn; `None` for all alike.
        unrelated_texts: Texts that ask for no fact.
    """

    examples: list[EditExample]
    probabilities: list[float] | None
    unrelated_texts: list[str]


def load_data(config: DataConfig) -> TrainingData:
    """Loads what a run reads.

    Raises:
        OSError, ValueError: As [`~recipe_hf.datasets.load_mixture`] and
            [`~recipe_hf.evaluation.asking.general.load_prompts`] do.
    """
    examples, shares = load_mixture(config.train_file)
    texts = load_prompts(config.unrelated_texts_file) if config.unrelated_texts_file else []
    return TrainingData(examples, None if isinstance(config.train_file, str) else shares, texts)


def load_start(config: TrainingConfig) -> RecipeForCausalLM:
    """The model before the first step: with new heads by the seed, or that of a checkpoint, without its facts."""
    set_seed(config.run.seed)
    dtype = _base_dtype(config.model, config.run.mixed_precision)
    if config.model.checkpoint is None:
        return _new_model(config.model, dtype, config.objective.temperature)
    contrasts = any(stage.contrastive_batch_size for stage in config.stages)
    temperature = config.objective.temperature if contrasts else None
    return _trained_model(config.model.checkpoint, config.model, dtype, temperature)


def training_inputs(
    config: TrainingConfig, data: TrainingData, model: RecipeForCausalLM, num_processes: int = 1
) -> dict[str, Any]:
    """What a run learns depends on this: runs with the same are the same run.

    Args:
        config: What the run is told.
        data: What it reads.
        model: The model before the first step, its base whole.
        num_processes: How many processes share the work.

    Returns:
        Plain values, as JSON has them: the fields of the configuration but for [`NAMES`], [`REPORTING`] and
        [`COMPUTING`], and what the first of these name.
    """
    settings = model_settings(model)
    sources, shares = config.data.train_file, config.data.sampling
    rows = data.examples if data.probabilities is None else list(zip(data.examples, data.probabilities, strict=True))
    fields = config.model_dump(mode="json")
    for left_out in (NAMES, REPORTING, COMPUTING):
        for group, names in left_out.items():
            for name in names:
                del fields[group][name]
    inputs = {
        **fields,
        "num_processes": num_processes,
        "contents": {
            "weights": None if isinstance(sources, str) else [DataSource.parse(source).weight for source in sources],
            "train_file": describe_rows(rows),
            "unrelated_texts_file": describe_rows(data.unrelated_texts),
            "properties": _properties_digest() if shares.rewording_share or shares.prompt_rewording_share else None,
        },
        "start": {name: settings[name] for name in _MODEL_SETTINGS},
    }
    return json.loads(json.dumps(inputs))


def _properties_digest() -> str:
    return digest([path.read_text(encoding="utf-8") for path in sorted(PROPERTIES.glob("*.yaml"))])


def _new_model(config: ModelConfig, dtype: Any, temperature: float) -> RecipeForCausalLM:
    finds: dict[str, Any] = {
        "encoder": config.encoder,
        "encoder_revision": config.encoder_revision,
        "knowledge_dim": config.knowledge_dim,
        "num_sentinel_tokens": config.num_sentinel_tokens,
        "similarity_temperature": temperature,
    }
    if config.retriever is not None:
        finds = {
            "retriever": config.retriever,
            "retriever_revision": config.retriever_revision,
            "prompt_form": "continuous",
        }
    return RecipeForCausalLM.from_base_pretrained(
        config.base_model,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.base_model_revision or "main",
        dtype=dtype,
        num_continuous_prompt_tokens=config.num_continuous_prompt_tokens,
        num_answer_prompt_tokens=config.num_answer_prompt_tokens,
        prompt_position=config.prompt_position,
        **finds,
    )


def _trained_model(checkpoint: str, config: ModelConfig, dtype: Any, temperature: float | None) -> RecipeForCausalLM:
    """The checkpoint to go on from, without its facts; its own temperature stays where none is given."""
    fields: dict[str, Any] = {}
    if config.num_answer_prompt_tokens:
        fields["num_answer_prompt_tokens"] = config.num_answer_prompt_tokens
    if temperature is not None:
        fields["similarity_temperature"] = temperature
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=config.base_model, dtype=dtype, **fields)
    model.knowledge = KnowledgeBase(model.config.knowledge_dim)
    return model


def _base_dtype(config: ModelConfig, mixed_precision: str) -> Any:
    name = config.base_dtype or ("float32" if mixed_precision == "no" else "auto")
    return name if name == "auto" else getattr(torch, name)
