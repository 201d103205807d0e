"""What a run that trains a verifier is told: one YAML file, whose unknown keys and wrong types are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..schema import build, check_types, read_yaml, require, require_integer, require_number
from .written import WRITTEN


@dataclass(frozen=True)
class SourceConfig:
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
    share: float
    path: str | None = None
    source: str | None = None
    half: Literal["train", "held_out"] | None = None
    max_rows: int | None = None
    num_eval_rows: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        of = f" of the source {self.name!r}"
        check_types(self, of)
        require(self.share > 0, f"share{of}", self.share, "above 0")
        needs_path = self.kind not in WRITTEN
        allowed = f"{'a path' if needs_path else 'null'} with kind: {self.kind}"
        require((self.path is not None) == needs_path, f"path{of}", self.path, allowed)
        require(self.half is None or self.kind == "edits", f"half{of}", self.half, "null but with kind: edits")
        selects = self.kind in ("pairs", "chat")
        require(self.source is None or selects, f"source{of}", self.source, "null but with kind: pairs or chat")
        for name in ("max_rows", "num_eval_rows"):
            if getattr(self, name) is not None:
                require_integer(f"{name}{of}", getattr(self, name), at_least=1)

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        return str(self.source or (self.kind if self.path is None else Path(str(self.path)).stem))


@dataclass(frozen=True)
class VerifierConfig:
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
    sources: tuple[SourceConfig, ...]
    output_dir: str
    steps: int
    encoder: str | None = None
    encoder_revision: str | None = None
    verifier: str | None = None
    num_verified_facts: int = 4
    verifier_margin: float = 1.0
    verifier_gap: float | None = None
    batch_size: int = 32
    mined_share: float = 0.28
    learning_rate: float = 1.5e-4
    head_learning_rate: float = 6e-4
    warmup_steps: int = 200
    weight_decay: float = 0.01
    superseded_share: float = 0.01
    label_smoothing: float = 0.02
    pair_weight: float = 0.3
    answer_weight: float = 0.15
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    eval_steps: int = 500
    save_steps: int = 100
    logging_steps: int = 20
    num_eval_pairs: int = 900
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        names = [source.name for source in self.sources]
        require(
            any(source.kind != "chat" for source in self.sources), "sources", names, "at least one with statements"
        )
        require(len(set(names)) == len(names), "names of sources", names, "all different")
        both = self.verifier is not None and self.encoder is not None
        require(not both, "encoder", self.encoder, "null where a verifier is trained on")
        even = self.batch_size >= 2 and self.batch_size % 2 == 0
        require(even, "batch_size", self.batch_size, "an even number of at least 2")
        for name in ("steps", "num_verified_facts", "eval_steps", "save_steps", "logging_steps", "num_eval_pairs"):
            require_integer(name, getattr(self, name), at_least=1)
        for name in ("warmup_steps", "seed"):
            require_integer(name, getattr(self, name), at_least=0)
        for name in ("mined_share", "label_smoothing", "superseded_share"):
            require_number(name, getattr(self, name), at_most=1)
        rates = ("learning_rate", "head_learning_rate", "weight_decay", "verifier_margin")
        for name in (*rates, "pair_weight", "answer_weight"):
            require_number(name, getattr(self, name))
        if self.verifier_gap is not None:
            require_number("verifier_gap", self.verifier_gap)
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "above 0")

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: str | None) -> VerifierConfig:
        """Reads a configuration; `overrides` that are not `None` take the place of its values.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is unknown or missing, or a value is not allowed; the message names it.
        """
        values = read_yaml(path)
        if not isinstance(values, dict) or not isinstance(values.get("sources"), list):
            raise ValueError(f"{path} must be a mapping with a list of sources.")
        values |= {name: value for name, value in overrides.items() if value is not None}
        values["sources"] = tuple(build(SourceConfig, source, f"{path}, sources") for source in values["sources"])
        return build(cls, values, str(path))
