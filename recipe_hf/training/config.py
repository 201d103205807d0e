"""What a training run is told: one YAML file, whose unknown keys and wrong types are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..datasets import DataSource
from .schema import build, check_types, read_yaml, require, require_integer, require_number

#: The seven loss terms of the paper (eq. 10-12 and the parts of eq. 14-15), and two of our own: `read_out` brings the
#: prompts of statements near those of the warm start, or of the checkpoint gone on from; `continuation` keeps what
#: follows the answer as the base has it.
LOSSES = (
    "reliability",
    "generality",
    "locality",
    "neighbor_reliability",
    "neighbor_generality",
    "sentinel_locality",
    "sentinel_edit",
    "read_out",
    "continuation",
)


@dataclass(frozen=True)
class StageConfig:
    """A part of the training schedule.

    A single stage that has both batches, and neither `read_out` nor `continuation`, is the paper's.

    Args:
        name: What the log calls it.
        steps: Number of optimizer steps.
        prompts: What the editing losses prefix: continuous prompts of the `statement` (eq. 7); in a warm start, those
            made of the `answer`'s own word embeddings, which teach MLP_P (see [`~recipe_hf.training.warm_start`]); or
            those of statement and `known_answer` both, of which the latter are trained (`num_answer_prompt_tokens`).
        contrastive_batch_size: Facts in the contrastive and read-out losses; 0 leaves these out.
        query_batch_size: How many of these facts also bring their queries; the others add keys and read-outs alone.
            `None` for all.
        mined_negatives: How many further facts each query brings as candidates: those whose keys are nearest to it,
            among all facts trained on (see [`~recipe_hf.training.objective.FactKeys`]).
        editing_batch_size: Facts in the editing losses, at most `contrastive_batch_size` if that is not 0; 0 leaves
            the LLM out.
        learning_rate: Of the heads, and of the sentinel and the prompt encoder where these have none of their own.
        key_learning_rate: Of MLP_K, where it is not that of MLP_Q; 0 keeps the keys of a frozen encoder as they are.
        sentinel_learning_rate: Of the sentinel's token embeddings.
        prompt_learning_rate: Of whatever makes the prompts.
        encoder_learning_rate: Of the text encoder; 0 freezes it, and features of texts met before are reused.
        encoder_layers: How many of the encoder's last layers are trained; `None` trains all of it.
        warmup_steps: Steps over which the learning rates rise.
        lr_scheduler_type: Then they fall along a `cosine` to a tenth, or stay `constant`.
        loss_weights: Weights of losses, 1 where not given.
        answer_variants: How many drawn answers a fact may have; `None` for any. A few let features be reused.
    """

    name: str
    steps: int
    prompts: Literal["statement", "answer", "known_answer"] = "statement"
    contrastive_batch_size: int = 0
    query_batch_size: int | None = None
    mined_negatives: int = 0
    editing_batch_size: int = 0
    learning_rate: float = 1e-5
    key_learning_rate: float | None = None
    sentinel_learning_rate: float | None = None
    prompt_learning_rate: float | None = None
    encoder_learning_rate: float = 0.0
    encoder_layers: int | None = None
    warmup_steps: int = 20
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    loss_weights: dict[str, float] = field(default_factory=dict)
    answer_variants: int | None = None

    def __post_init__(self) -> None:
        for name in ("key_learning_rate", "sentinel_learning_rate", "prompt_learning_rate"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.learning_rate)
        stage = f"of stage {self.name!r}"
        check_types(self, f" {stage}")
        for name in ("steps", "contrastive_batch_size", "mined_negatives", "editing_batch_size", "warmup_steps"):
            require_integer(f"{name} {stage}", getattr(self, name), at_least=0)
        for name in ("encoder_layers", "answer_variants", "query_batch_size"):
            if getattr(self, name) is not None:
                require_integer(f"{name} {stage}", getattr(self, name), at_least=1)
        rates = ("learning_rate", "key_learning_rate", "sentinel_learning_rate", "prompt_learning_rate")
        for name in (*rates, "encoder_learning_rate"):
            require_number(f"{name} {stage}", getattr(self, name))
        require(self.batch_size > 0, f"the batch sizes {stage}", self.batch_size, "above 0, at least one of them")
        require(
            self.prompts == "statement" or not self.contrastive_batch_size,
            f"contrastive_batch_size {stage}",
            self.contrastive_batch_size,
            f"0 with prompts: {self.prompts}",
        )
        require(
            not self.contrastive_batch_size or self.editing_batch_size <= self.contrastive_batch_size,
            f"editing_batch_size {stage}",
            self.editing_batch_size,
            f"at most contrastive_batch_size, {self.contrastive_batch_size}",
        )
        unknown = sorted(set(self.loss_weights) - set(LOSSES))
        require(not unknown, f"loss_weights {stage}", unknown, f"among {', '.join(LOSSES)}")
        for name, weight in self.loss_weights.items():
            require_number(f"the weight of {name} {stage}", weight)

    @property
    def batch_size(self) -> int:
        """Facts in a step."""
        return max(self.contrastive_batch_size, self.editing_batch_size)

    def weight(self, loss: str) -> float:
        """Weight of a loss."""
        return self.loss_weights.get(loss, 1.0)


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Args:
        base_model: Hub id, directory or GGUF file of the base LLM.
        train_file: Data to train on, as [`~recipe_hf.datasets.load_examples`] takes it, or a list of sources that are
            mixed by weight, each a path or the fields of [`~recipe_hf.datasets.DataSource`]; the fields of a single
            source are taken for a list of one.
        output_dir: Where checkpoints and logs go.
        stages: The schedule.
        encoder: Hub id or directory of the starting text encoder.
        encoder_revision: Revision of the encoder; `None` with a checkpoint, which has one.
        checkpoint: A trained checkpoint, in a directory or on the Hub, to go on from instead of new weights. Its
            encoder and its sizes are taken too; such a run has no warm start.
        base_model_name_or_path: Base that the checkpoint names, where `base_model` is a local copy of it.
        base_model_revision: Revision of the base.
        knowledge_dim: See [`RecipeConfig`].
        num_continuous_prompt_tokens: See [`RecipeConfig`].
        num_answer_prompt_tokens: See [`RecipeConfig`].
        num_sentinel_tokens: See [`RecipeConfig`].
        num_eval_examples: How many of the last rows of `train_file`, or of the last source in it, are held out.
        num_eval_questions: How many of these each evaluation asks about; all of them are in its knowledge base.
        num_eval_training_facts: How many of the facts trained on its knowledge base holds beside the held-out ones:
            the more there are, the harder it is to tell a fact from all others, and from none.
        eval_steps: Steps between evaluations, each of which may give a new best checkpoint.
        save_steps: Steps between checkpoints to resume from.
        logging_steps: Steps between log lines.
        answer_resampling: See [`FactSampler`].
        subject_share: See [`FactSampler`].
        same_template_share: See [`FactSampler`].
        hard_negative_share: See [`FactSampler`].
        distractor_share: See [`FactSampler`].
        chat_share: See [`FactSampler`]; needs a base with a chat template.
        rewording_share: See [`FactSampler`].
        prompt_rewording_share: See [`FactSampler`].
        other_property_share: See [`FactSampler`].
        unrelated_text_share: See [`FactSampler`].
        unrelated_texts_file: File as [`~recipe_hf.evaluation.general.load_prompts`] takes it, needed with
            `unrelated_text_share`.
        mining_steps: Steps between encodings of all facts trained on, for stages with `mined_negatives`.
        key_memory: How many keys of past steps serve as further negatives.
        temperature: `tau` of the contrastive losses.
        hinge_scale: Margin from which predictions are good enough to be left out of the losses; `None` for none.
        length_buckets: Calls of the encoder, and of the base without `pack_rows`, in which a step's rows, sorted by
            length, are shared out. One is best where calls cost more than padding, on a GPU; about four on a CPU.
        pack_rows: Whether the base reads a fact's rows as one tree, in which their prompt and what they have in
            common at the beginning are computed once (see [`~recipe_hf.training.packing`]). The losses are the same;
            a base that cannot be given positions and such masks is refused.
        gradient_accumulation_steps: How many batches make one optimizer step.
        max_grad_norm: Gradients are clipped to this norm.
        mixed_precision: `no`, `fp16` or `bf16`, as in Accelerate.
        base_dtype: What the frozen base is held in: `float32`, `float16`, `bfloat16`, or `auto` for what it is
            published in. `None` is `float32` without mixed precision and `auto` with it. Autocast casts the weights of
            a float32 base anew in every call.
        base_attn_implementation: Attention of the base, as `attn_implementation` of transformers; `None` for its own
            choice.
        shard_base: Whether each of several processes keeps a share of the base only (see
            [`~recipe_hf.training.sharding`]), for one too large for a device.
        early_stopping_patience: Stop after this many evaluations in a row without a new best; `None` for never.
        log_with: An Accelerate tracker, such as `tensorboard` or `trackio`; `metrics.jsonl` is always written.
        push_to_hub: Whether the best checkpoint is uploaded at the end, with a model card.
        hub_model_id: Repository to upload to; needed with `push_to_hub`.
        hub_private_repo: Whether a new repository is private.
        hub_steps: Also upload the best checkpoint so far every so many steps; `None` for at the end only.
        license: License of the weights trained, by the Hub's name of it, for the card; `None` claims none.
        language: Code or codes of the language trained on, for the card; `None` claims none.
        seed: Seed of weights and draws.
    """

    base_model: str
    train_file: str | list[Any]
    output_dir: str
    stages: tuple[StageConfig, ...]
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    encoder_revision: str | None = None
    checkpoint: str | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    knowledge_dim: int = 1024
    num_continuous_prompt_tokens: int = 3
    num_answer_prompt_tokens: int = 0
    num_sentinel_tokens: int = 10
    num_eval_examples: int = 500
    num_eval_questions: int = 100
    num_eval_training_facts: int = 0
    eval_steps: int = 100
    save_steps: int = 100
    logging_steps: int = 10
    answer_resampling: float = 0.0
    subject_share: float = 0.0
    same_template_share: float = 0.0
    hard_negative_share: float = 0.0
    distractor_share: float = 0.0
    chat_share: float = 0.0
    rewording_share: float = 0.0
    prompt_rewording_share: float = 0.0
    other_property_share: float = 0.0
    unrelated_text_share: float = 0.0
    unrelated_texts_file: str | None = None
    mining_steps: int = 200
    key_memory: int = 0
    temperature: float = 1.0
    hinge_scale: float | None = None
    length_buckets: int = 1
    pack_rows: bool = False
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    base_dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    base_attn_implementation: str | None = None
    shard_base: bool = False
    early_stopping_patience: int | None = None
    log_with: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_steps: int | None = None
    license: str | None = None
    language: list[str] | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.train_file, dict):
            object.__setattr__(self, "train_file", [self.train_file])
        check_types(self)
        require(len(self.stages) > 0, "stages", self.stages, "at least one")
        require(self.num_steps > 0, "steps of all stages together", self.num_steps, "at least 1")
        require(len(self.train_file) > 0, "train_file", self.train_file, "a path or at least one source")
        for source in [self.train_file] if isinstance(self.train_file, str) else self.train_file:
            try:
                DataSource.parse(source)
            except ValueError as error:
                raise ValueError(f"train_file: {error}") from error
        for name in (
            "answer_resampling",
            "subject_share",
            "same_template_share",
            "distractor_share",
            "chat_share",
            "rewording_share",
            "prompt_rewording_share",
            "other_property_share",
        ):
            require_number(name, getattr(self, name), at_most=1)
        require_number("unrelated_text_share", self.unrelated_text_share, at_most=1 - self.other_property_share)
        require(
            not self.unrelated_text_share or bool(self.unrelated_texts_file),
            "unrelated_texts_file",
            self.unrelated_texts_file,
            "a path with unrelated_text_share",
        )
        require_number("hard_negative_share", self.hard_negative_share, at_most=0.5)
        for name in (
            "eval_steps",
            "save_steps",
            "logging_steps",
            "mining_steps",
            "num_eval_examples",
            "num_eval_questions",
            "num_continuous_prompt_tokens",
            "num_sentinel_tokens",
            "length_buckets",
            "gradient_accumulation_steps",
        ):
            require_integer(name, getattr(self, name), at_least=1)
        for name in ("early_stopping_patience", "hub_steps"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), at_least=1)
        for name in ("key_memory", "num_eval_training_facts", "seed"):
            require_integer(name, getattr(self, name), at_least=0)
        for name in ("temperature", "max_grad_norm"):
            require_number(name, getattr(self, name))
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        if self.hinge_scale is not None:
            require_number("hinge_scale", self.hinge_scale, at_least=1)
        require(
            not self.push_to_hub or bool(self.hub_model_id),
            "hub_model_id",
            self.hub_model_id,
            "a repository id such as 'organisation/name' with push_to_hub",
        )
        require_integer("num_answer_prompt_tokens", self.num_answer_prompt_tokens, at_least=0)
        dim = self.knowledge_dim
        require(dim > 0 and dim % 8 == 0, "knowledge_dim", dim, "a positive multiple of 8")
        require(
            self.checkpoint is None or self.encoder_revision is None,
            "encoder_revision",
            self.encoder_revision,
            "null with a checkpoint",
        )
        for stage in self.stages:
            require(
                stage.prompts != "known_answer" or self.num_answer_prompt_tokens > 0,
                "num_answer_prompt_tokens",
                self.num_answer_prompt_tokens,
                f"above 0 for stage {stage.name!r}",
            )
            if self.checkpoint is not None:
                require(
                    stage.prompts != "answer", f"prompts of stage {stage.name!r}", "answer", "others with a checkpoint"
                )

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> TrainingConfig:
        """Reads a configuration; `overrides` that are not `None` take the place of its values.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is unknown or missing, or a value is not allowed; the message names it.
        """
        values = read_yaml(path)
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
            raise ValueError(f"{path} must be a mapping with a list of stages.")
        values |= {name: value for name, value in overrides.items() if value is not None}
        values["stages"] = tuple(build(StageConfig, stage, f"{path}, stages") for stage in values["stages"])
        return build(cls, values, str(path))
