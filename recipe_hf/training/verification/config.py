"""What a run that trains a verifier is told: one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..config import Share
from ..yaml_config import YamlConfig, require
from .written import WRITTEN


class SourceConfig(YamlConfig):
    """A part of the data.

    Args:
        kind: `statements`, `families` and `updates` are those of this package; `pairs` a file of rows with
            `statement`, `asks` and `misses`; `edits` knowledge editing data, as
            [`~recipe_hf.datasets.load_examples`] takes them, whose unrelated questions are misses; `chat` a file of
            rows with `texts` that no statement answers.
        share: How often a draw is of it, in proportion to the shares of the others.
        path: The file, here or on the Hub; none with what this package has.
        source: Of `pairs` and `chat`, take the rows whose `source` is this.
        half: Of `edits`, the half of the rows to take.
        max_rows: Take the first rows only.
        num_eval_rows: How many of the last of these are for development; by default a digest of each decides.
        license: License of the data, for the card.
    """

    kind: Literal["statements", "families", "updates", "pairs", "edits", "chat"]
    share: PositiveFloat
    path: str | None = None
    source: str | None = None
    half: Literal["train", "held_out"] | None = None
    max_rows: PositiveInt | None = None
    num_eval_rows: PositiveInt | None = None
    license: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs_path = self.kind not in WRITTEN
        allowed = f"{'a path' if needs_path else 'null'} with kind: {self.kind}"
        require((self.path is not None) == needs_path, "path", self.path, allowed)
        require(self.half is None or self.kind == "edits", "half", self.half, "null but with kind: edits")
        selects = self.kind in ("pairs", "chat")
        require(self.source is None or selects, "source", self.source, "null but with kind: pairs or chat")
        return self

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        return self.source or (self.kind if self.path is None else Path(self.path).stem)


class VerifierConfig(YamlConfig):
    """A run that trains a verifier.

    Args:
        checkpoint: The trained checkpoint, in a directory or on the Hub, whose retriever the verifier stands behind.
        sources: The data.
        output_dir: Where checkpoints and logs go.
        steps: Number of optimizer steps.
        encoder: Hub id or directory of the encoder whose layers it starts from; `None` for those of the checkpoint.
        encoder_revision: Revision of that encoder.
        verifier: Directory or Hub id of a checkpoint whose verifier is trained on, in place of an encoder's layers.
        num_verified_facts: See [`RecipeConfig`].
        verifier_margin: See [`RecipeConfig`].
        verifier_gap: See [`RecipeConfig`].
        batch_size: Pairs of query and statement in a step, half of them misses: an even number.
        mined_share: Share of the misses that are mined, where a statement has both kinds.
        learning_rate: Of the layers. It rises over `warmup_steps`, then falls along a line.
        head_learning_rate: Of what reads the layers.
        warmup_steps: Steps over which the learning rates rise.
        weight_decay: Of AdamW.
        superseded_share: How many of the updates for development that leave a fact where it is may be mistaken when
            `supersede_threshold` is chosen.
        label_smoothing: How much of the label is spread evenly.
        pair_weight: Weight of the loss that a statement's ask stands above its miss.
        answer_weight: Weight of the loss of the answer's place in the statement, where it is known.
        max_grad_norm: Gradients are clipped to this norm.
        mixed_precision: `no` or `bf16`.
        eval_steps: Steps between evaluations on development rows.
        save_steps: Steps between checkpoints to resume from.
        logging_steps: Steps between log lines.
        num_eval_pairs: Pairs of each source in an evaluation, at most.
        seed: Seed of weights and draws.
    """

    checkpoint: str
    sources: list[SourceConfig]
    output_dir: str
    steps: PositiveInt
    encoder: str | None = None
    encoder_revision: str | None = None
    verifier: str | None = None
    num_verified_facts: PositiveInt = 4
    verifier_margin: NonNegativeFloat = 1.0
    verifier_gap: NonNegativeFloat | None = None
    batch_size: Annotated[PositiveInt, Field(multiple_of=2)] = 32
    mined_share: Share = 0.28
    learning_rate: NonNegativeFloat = 1.5e-4
    head_learning_rate: NonNegativeFloat = 6e-4
    warmup_steps: NonNegativeInt = 200
    weight_decay: NonNegativeFloat = 0.01
    superseded_share: Share = 0.01
    label_smoothing: Share = 0.02
    pair_weight: NonNegativeFloat = 0.3
    answer_weight: NonNegativeFloat = 0.15
    max_grad_norm: PositiveFloat = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    eval_steps: PositiveInt = 500
    save_steps: PositiveInt = 100
    logging_steps: PositiveInt = 20
    num_eval_pairs: PositiveInt = 900
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.name for source in self.sources]
        told = any(source.kind != "chat" for source in self.sources)
        require(told, "sources", names, "at least one with statements")
        require(len(set(names)) == len(names), "names of sources", names, "all different")
        both = self.verifier is not None and self.encoder is not None
        require(not both, "encoder", self.encoder, "null where a verifier is trained on")
        return self
