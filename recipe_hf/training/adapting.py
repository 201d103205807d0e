"""Adapting a trained retriever to another base: the prompts are trained, and what depends on the base is found out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..cards.model_card import write_model_card
from ..datasets import load_mixture
from ..modeling.frozen_base import load_tokenizer
from ..modeling.model import RecipeForCausalLM
from .arguments import read_config
from .config import TrainingConfig
from .run_record import METRICS_LOG, RUN_RECORD, describe_run
from .saving import find_whole
from .trainer import Trainer

#: The schedule, which is the same for every base.
SCHEDULE = Path(__file__).with_name("configs") / "adapt.yaml"
#: Below the output directory, what a run leaves to be resumed from.
RUN_DIRECTORY = "run"

_GAIN = 1.5
_TRIES = 5


def adaptation(
    base_model: str,
    output_dir: Path,
    options: Mapping[str, Any],
    assignments: Sequence[str] = (),
    resume: bool = False,
) -> TrainingConfig:
    """The run that trains prompts for a base.

    Args:
        base_model: Hub id, directory or GGUF file of the base.
        output_dir: Where the checkpoint goes. What a run leaves lies in `run` below it.
        options: Values of other fields by dotted name; those that are `None` were not given.
        assignments: Texts `NAME=VALUE`, which come last.
        resume: Whether it goes on with a run that was stopped, in whose precision it then is.

    Raises:
        OSError: If the base's tokenizer, the facts or the run to be resumed cannot be found.
        ValueError: If a field is not as described, or the run to be resumed is damaged.
    """
    run = output_dir / RUN_DIRECTORY
    fitting: dict[str, Any] = {
        "model.base_model": base_model,
        "run.output_dir": str(run),
        "run.mixed_precision": _precision_of(run) if resume else faster_precision(),
    }
    if not torch.cuda.is_available():
        fitting["model.base_dtype"] = "float32"  # What a CPU multiplies in bfloat16, it is not faster at adding.
    if not load_tokenizer(base_model).chat_template:
        fitting["data.sampling.chat_share"] = 0.0
    given = {name: value for name, value in options.items() if value is not None}
    config = read_config(TrainingConfig, SCHEDULE, fitting | given, assignments)
    if config.run.output_dir != str(run):
        raise ValueError(
            f"run.output_dir must be {str(run)!r}, in the output directory, got {config.run.output_dir!r}."
        )
    return config.changed(_fitting_sizes(config))


def _precision_of(run: Path) -> str:
    """The precision of a run that was stopped: measured again, it might be another."""
    _, record = find_whole(run / "checkpoint")
    return record["inputs"]["run"]["mixed_precision"]


def _fitting_sizes(config: TrainingConfig) -> dict[str, int]:
    """Sizes, by dotted name, that are too large for few facts, as they can be."""
    examples, _ = load_mixture(config.data.train_file)
    held_out = min(config.data.num_eval_examples, max(1, len(examples) // 5))
    sizes = {"data.num_eval_examples": held_out}
    for number, stage in enumerate(config.stages):
        for name in ("contrastive_batch_size", "editing_batch_size"):
            sizes[f"stages.{number}.{name}"] = min(getattr(stage, name), max(1, len(examples) - held_out))
    return sizes


def adapt(config: TrainingConfig, resume: bool = False) -> Path:
    """Trains the prompts, and leaves the best checkpoint above `run.output_dir`.

    Args:
        config: What [`adaptation`] says.
        resume: Whether to go on from where a run that was stopped was saved.

    Returns:
        The checkpoint's directory.

    Raises:
        FileExistsError: If there is a checkpoint in that directory, and the run is not resumed.
        FileNotFoundError, OSError, ValueError: As [`Trainer.train`] does.
    """
    directory = Path(config.run.output_dir).parent
    if not resume and (directory / "config.json").exists():
        raise FileExistsError(f"output must be a directory without a checkpoint, got {str(directory)!r}.")
    best = Trainer(config).train(resume)
    # Saved anew, not copied: the way to a retriever in a directory is another from here.
    start = config.model
    model = RecipeForCausalLM.from_pretrained(best, base_model=False)
    model.save_pretrained(
        directory, parts="prompts", retriever=start.retriever, retriever_revision=start.retriever_revision
    )
    for name in (RUN_RECORD, METRICS_LOG):
        shutil.copy(best / name, directory)
    write_model_card(directory, describe_run(directory))
    return directory


def faster_precision() -> Literal["no", "bf16"]:
    """Whether small matrices are multiplied much faster in bfloat16 here: some CPUs take longer for it."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    rows, weight = torch.randn(256, 512), torch.randn(2048, 512)
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = rows.to(dtype), weight.to(dtype)
        taken = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            F.linear(a, b)
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    return "bf16" if seconds[0] > _GAIN * seconds[1] else "no"
