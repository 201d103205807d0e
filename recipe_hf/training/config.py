"""What a training run is told: one YAML file, whose fields are grouped by what takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ..datasets import DataSource
from .yaml_config import YamlConfig, require

#: The seven loss terms of the paper (eq. 10-12 and the parts of eq. 14-15), and two of our own: `read_out` brings the
#: prompts of statements near those of the warm start, or of the checkpoint gone on from; `continuation` keeps what
#: follows the answer as the base has it.
Loss = Literal[
    "reliability",
    "generality",
    "locality",
    "neighbor_reliability",
    "neighbor_generality",
    "sentinel_locality",
    "sentinel_edit",
    "read_out",
    "continuation",
]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Share = Annotated[float, Field(ge=0, le=1)]


def _of_the_heads(stage: dict[str, Any]) -> float:
    return stage.get("learning_rate", 0.0)  # It is not there if it was refused.


class StageConfig(YamlConfig):
    """A part of the training schedule.

    A single stage that has both batches, and neither `read_out` nor `continuation`, is the paper's.

    Args:
        name: What the log calls it.
        steps: Number of optimizer steps.
        prompts: What the editing losses prefix: continuous prompts of the `statement` (eq. 7); in a warm start, those
            made of the `answer`'s own word embeddings, which teach MLP_P (see [`~recipe_hf.training.warm_start`]); or
            those of statement and `known_answer` both, of which the latter are trained (`num_answer_prompt_tokens`).
        contrastive_batch_size: Facts in the contrastive and read-out losses; 0 leaves these out. Where all rates but
            `prompt_learning_rate` are 0, in the read-out loss alone.
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
    steps: NonNegativeInt
    prompts: Literal["statement", "answer", "known_answer"] = "statement"
    contrastive_batch_size: NonNegativeInt = 0
    query_batch_size: PositiveInt | None = None
    mined_negatives: NonNegativeInt = 0
    editing_batch_size: NonNegativeInt = 0
    learning_rate: NonNegativeFloat = 1e-5
    key_learning_rate: NonNegativeFloat = Field(default_factory=_of_the_heads)
    sentinel_learning_rate: NonNegativeFloat = Field(default_factory=_of_the_heads)
    prompt_learning_rate: NonNegativeFloat = Field(default_factory=_of_the_heads)
    encoder_learning_rate: NonNegativeFloat = 0.0
    encoder_layers: PositiveInt | None = None
    warmup_steps: NonNegativeInt = 20
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    loss_weights: dict[Loss, NonNegativeFloat] = {}
    answer_variants: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        contrastive, editing = self.contrastive_batch_size, self.editing_batch_size
        require(self.batch_size > 0, "contrastive_batch_size or editing_batch_size", self.batch_size, "above 0")
        fits = self.prompts == "statement" or not contrastive
        require(fits, "contrastive_batch_size", contrastive, f"0 with prompts: {self.prompts}")
        fits = not contrastive or editing <= contrastive
        require(fits, "editing_batch_size", editing, f"at most contrastive_batch_size, {contrastive}")
        return self

    @property
    def batch_size(self) -> int:
        """Facts in a step."""
        return max(self.contrastive_batch_size, self.editing_batch_size)

    @property
    def trains_retriever(self) -> bool:
        """Whether it trains more than what makes the prompts."""
        rates = self.learning_rate, self.key_learning_rate, self.sentinel_learning_rate, self.encoder_learning_rate
        return any(rates)

    def weight(self, loss: str) -> float:
        """Weight of a loss."""
        return self.loss_weights.get(cast(Loss, loss), 1.0)


class SamplingConfig(YamlConfig):
    """What a step sees of the data (see [`~recipe_hf.training.sampling.FactSampler`]).

    Args:
        answer_resampling: Share of facts whose answer is replaced by another, against learning facts by heart.
        subject_share: Share of the replaced answers that are drawn from the subjects (names of all kinds, often of
            several tokens) rather than from the answers of the data set.
        same_template_share: Share of the rest that are drawn from the answers of facts whose prompt differs in the
            subject only: answers of the right kind.
        hard_negative_share: Share of a step's facts that are drawn, last in the batch, from those whose prompt differs
            from that of another fact of the step in the subject only.
        distractor_share: Share of facts whose questions come after one to four statements of other facts.
        chat_share: Share of facts that the base is asked in its chat template, which it must have.
        rewording_share: Share of rephrasings that are replaced by other words for the same (see
            [`~recipe_hf.training.wordings.Wordings`]).
        prompt_rewording_share: The same of prompts, so that facts are told in other words too.
        other_property_share: Share of facts whose unrelated question asks for another property of the same subject
            (see [`~recipe_hf.training.wordings.OtherProperties`]).
        unrelated_text_share: Share of facts whose unrelated question is one of `unrelated_texts_file`.
    """

    answer_resampling: Share = 0.0
    subject_share: Share = 0.0
    same_template_share: Share = 0.0
    hard_negative_share: Annotated[Share, Field(le=0.5)] = 0.0
    distractor_share: Share = 0.0
    chat_share: Share = 0.0
    rewording_share: Share = 0.0
    prompt_rewording_share: Share = 0.0
    other_property_share: Share = 0.0
    unrelated_text_share: Share = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        share, left = self.unrelated_text_share, 1 - self.other_property_share
        require(share <= left, "unrelated_text_share", share, f"at most {left}, what other_property_share leaves")
        return self


class DataConfig(YamlConfig):
    """The facts to train on, and those held out.

    Args:
        train_file: Data to train on, as [`~recipe_hf.datasets.load_examples`] takes it, or a list of sources that are
            mixed by weight, each a path or the fields of [`~recipe_hf.datasets.DataSource`]; the fields of a single
            source are taken for a list of one.
        num_eval_examples: How many of the last rows of `train_file`, or of the last source in it, are held out.
        num_eval_questions: How many of these each evaluation asks about; all of them are in its knowledge base.
        num_eval_training_facts: How many of the facts trained on its knowledge base holds beside the held-out ones:
            the more there are, the harder it is to tell a fact from all others, and from none.
        unrelated_texts_file: File as [`~recipe_hf.evaluation.asking.general.load_prompts`] takes it, needed with
            `unrelated_text_share`.
        sampling: Which facts a step sees, and in which words.
    """

    train_file: str | Annotated[list[Any], Field(min_length=1)]
    num_eval_examples: PositiveInt = 500
    num_eval_questions: PositiveInt = 100
    num_eval_training_facts: NonNegativeInt = 0
    unrelated_texts_file: str | None = None
    sampling: SamplingConfig = SamplingConfig()

    @field_validator("train_file", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for source in [self.train_file] if isinstance(self.train_file, str) else self.train_file:
            try:
                DataSource.parse(source)
            except ValueError as error:
                raise ValueError(f"train_file: {error}") from error
        fits = self.unrelated_texts_file is not None or not self.sampling.unrelated_text_share
        allowed = "a path with sampling.unrelated_text_share"
        require(fits, "unrelated_texts_file", self.unrelated_texts_file, allowed)
        return self


class ModelConfig(YamlConfig):
    """What a run starts from: base, encoder and sizes, or a checkpoint.

    Args:
        base_model: Hub id, directory or GGUF file of the base LLM.
        base_model_name_or_path: Base that the checkpoint names, where `base_model` is a local copy of it.
        base_model_revision: Revision of the base.
        base_dtype: What the frozen base is held in: `float32`, `float16`, `bfloat16`, or `auto` for what it is
            published in. `None` is `float32` without mixed precision and `auto` with it. Autocast casts the weights of
            a float32 base anew in every call.
        base_attn_implementation: Attention of the base, as `attn_implementation` of transformers; `None` for its own
            choice.
        shard_base: Whether each of several processes keeps a share of the base only (see
            [`~recipe_hf.training.sharding`]), for one too large for a device.
        encoder: Hub id or directory of the starting text encoder.
        encoder_revision: Revision of the encoder; `None` with a checkpoint, which has one.
        checkpoint: A trained checkpoint, in a directory or on the Hub, to go on from instead of new weights. Its
            encoder and its sizes are taken too; such a run has no warm start.
        retriever: A trained checkpoint, whatever its base, whose retriever and verifier find the facts; the prompts
            alone are trained, and saved as a checkpoint that names it. Its encoder and its sizes are taken, too.
        retriever_revision: Revision of a retriever on the Hub.
        knowledge_dim: See [`RecipeConfig`].
        num_continuous_prompt_tokens: See [`RecipeConfig`].
        num_answer_prompt_tokens: See [`RecipeConfig`].
        prompt_position: See [`RecipeConfig`].
        num_sentinel_tokens: See [`RecipeConfig`].
    """

    base_model: str
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    base_attn_implementation: str | None = None
    shard_base: bool = False
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    encoder_revision: str | None = None
    checkpoint: str | None = None
    retriever: str | None = None
    retriever_revision: str | None = None
    knowledge_dim: Annotated[PositiveInt, Field(multiple_of=8)] = 1024
    num_continuous_prompt_tokens: PositiveInt = 3
    num_answer_prompt_tokens: NonNegativeInt = 0
    prompt_position: Literal["before_bos", "after_bos"] = "before_bos"
    num_sentinel_tokens: PositiveInt = 10

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_encoder = self.checkpoint is not None or self.retriever is not None
        fits = not has_encoder or self.encoder_revision is None
        require(fits, "encoder_revision", self.encoder_revision, "null with a checkpoint or a retriever")
        fits = self.checkpoint is None or self.retriever is None
        require(fits, "retriever", self.retriever, "null with a checkpoint, which has one")
        fits = self.checkpoint is None or self.prompt_position == "before_bos"
        require(fits, "prompt_position", self.prompt_position, "left out with a checkpoint, which has one")
        fits = self.retriever is not None or self.retriever_revision is None
        require(fits, "retriever_revision", self.retriever_revision, "null without a retriever")
        return self


class ObjectiveConfig(YamlConfig):
    """How the losses of a step are computed.

    Args:
        temperature: `tau` of the contrastive losses.
        hinge_scale: Margin from which predictions are good enough to be left out of the losses; `None` for none.
        key_memory: How many keys of past steps serve as further negatives.
        mining_steps: Steps between encodings of all facts trained on, for stages with `mined_negatives`.
        length_buckets: Calls of the encoder, and of the base without `pack_rows`, in which a step's rows, sorted by
            length, are shared out. One is best where calls cost more than padding, on a GPU; about four on a CPU.
        relative_prompt_rates: Whether the rates of what has the scale of word embeddings follow that of the base (1/8
            counts as 1), so that one schedule serves bases whose embeddings are large or small.
        pack_rows: Whether the base reads a fact's rows as one tree, in which their prompt and what they have in
            common at the beginning are computed once (see [`~recipe_hf.training.packing`]). The losses are the same;
            a base that cannot be given positions and such masks is refused. `None` packs where the base allows it.
    """

    temperature: PositiveFloat = 1.0
    hinge_scale: Annotated[float, Field(ge=1)] | None = None
    key_memory: NonNegativeInt = 0
    mining_steps: PositiveInt = 200
    length_buckets: PositiveInt = 1
    relative_prompt_rates: bool = False
    pack_rows: bool | None = False


class RunConfig(YamlConfig):
    """How a run goes: optimizer, evaluations, files, trackers, the Hub.

    Args:
        output_dir: Where checkpoints and logs go.
        seed: Seed of weights and draws.
        eval_steps: Steps between evaluations, each of which may give a new best checkpoint.
        save_steps: Steps between checkpoints to resume from.
        logging_steps: Steps between log lines.
        early_stopping_patience: Stop after this many evaluations in a row without a new best; `None` for never.
        gradient_accumulation_steps: How many batches make one optimizer step.
        max_grad_norm: Gradients are clipped to this norm.
        mixed_precision: `no`, `fp16` or `bf16`, as in Accelerate.
        log_with: An Accelerate tracker, such as `tensorboard` or `trackio`; `metrics.jsonl` is always written.
        push_to_hub: Whether the best checkpoint is uploaded at the end, with a model card.
        hub_model_id: Repository to upload to; needed with `push_to_hub`.
        hub_private_repo: Whether a new repository is private.
        hub_steps: Also upload the best checkpoint so far every so many steps; `None` for at the end only.
        license: License of the weights trained, by the Hub's name of it, for the card; `None` claims none.
        language: Code or codes of the language trained on, for the card; `None` claims none.
    """

    output_dir: str
    seed: NonNegativeInt = 0
    eval_steps: PositiveInt = 100
    save_steps: PositiveInt = 100
    logging_steps: PositiveInt = 10
    early_stopping_patience: PositiveInt | None = None
    gradient_accumulation_steps: PositiveInt = 1
    max_grad_norm: PositiveFloat = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    log_with: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_steps: PositiveInt | None = None
    license: str | None = None
    language: list[str] | str | None = None

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: Any) -> Any:
        return "no" if value is False else value  # An unquoted `no`.

    @model_validator(mode="after")
    def _check(self) -> Self:
        fits = self.hub_model_id is not None or not self.push_to_hub
        allowed = "a repository id such as 'organisation/name' with push_to_hub"
        require(fits, "hub_model_id", self.hub_model_id, allowed)
        return self


class TrainingConfig(YamlConfig):
    """A training run.

    Args:
        model: What is trained.
        data: What it is trained on.
        stages: The schedule.
        run: How long, where to, and what is told of it.
        objective: How its losses are computed.
    """

    model: ModelConfig
    data: DataConfig
    stages: Annotated[list[StageConfig], Field(min_length=1)]
    run: RunConfig
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        retriever = self.model.retriever
        fits = not self.run.push_to_hub or retriever is None or not Path(retriever).is_dir()
        require(fits, "model.retriever", retriever, "on the Hub with push_to_hub, for the prompts will name it")
        require(self.num_steps > 0, "steps of all stages together", self.num_steps, "at least 1")
        answer_tokens = self.model.num_answer_prompt_tokens
        for number, stage in enumerate(self.stages):
            fits = stage.prompts != "known_answer" or answer_tokens > 0
            allowed = f"above 0 for stage {stage.name!r}"
            require(fits, "model.num_answer_prompt_tokens", answer_tokens, allowed)
            fits = stage.prompts != "answer" or self.model.checkpoint is None
            require(fits, f"stages.{number}.prompts", stage.prompts, "another with a checkpoint")
            fits = not stage.trains_retriever or self.model.retriever is None
            allowed = "0 with a trained retriever, as are key_, sentinel_ and encoder_learning_rate"
            require(fits, f"stages.{number}.learning_rate", stage.learning_rate, allowed)
        return self

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)
