"""The training loop: stages, logs, held-out evaluation, checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.autograd.graph import increment_version
from tqdm.auto import tqdm
from transformers.utils import logging

try:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import broadcast_object_list
except ImportError as error:
    raise ImportError("Training needs accelerate: install it with pip install 'recipe-hf[train]'.") from error

from ..cards.model_card import write_model_card
from ..evaluation.asking.questions import KINDS
from ..evaluation.measuring.editing import evaluate_editing
from ..hub import create_repository, push_checkpoint
from ..modeling.frozen_base import base_revision
from .config import StageConfig, TrainingConfig
from .objective import RecipeObjective, parameter_groups
from .run_record import METRICS_LOG, RUN_RECORD, describe_run, earlier_runs
from .sampling import FactSampler
from .saving import beside, cut_log, find_best, find_run, refuse_earlier, replace, seal, settle
from .sharding import check_launch, shard
from .start import load_data, load_start, training_inputs
from .tracking import require_tracker, start_tracker

logger = logging.get_logger(__name__)

_CALIBRATION_FACTS = 512
_VERSIONED = ("recipe-hf", "torch", "transformers", "accelerate")
_PROGRESS = ("step", "best_score", "evaluations_since_best", "seconds")


class Trainer:
    """Trains a RECIPE model as a [`TrainingConfig`] says, and leaves the best checkpoint in `output_dir/best`.

    Every step's facts follow from the step's number, so a resumed run goes on as an unbroken one would.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.run = run = config.run
        self.output_dir = Path(run.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=run.mixed_precision,
            gradient_accumulation_steps=run.gradient_accumulation_steps,
            log_with=run.log_with,
            project_dir=run.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        require_tracker(self.accelerator, run.log_with)
        check_launch(self.accelerator.distributed_type, self.accelerator.num_processes, config.model.shard_base)
        data = load_data(config.data)
        examples, held_out = data.examples, config.data.num_eval_examples
        if len(examples) <= held_out:
            raise ValueError(
                f"data.num_eval_examples must be below the {len(examples)} rows of {config.data.train_file}, "
                f"got {held_out}."
            )
        self.held_out = examples[-held_out:]
        self.sampler = FactSampler(
            examples[:-held_out],
            config.data.sampling,
            run.seed,
            None if data.probabilities is None else data.probabilities[:-held_out],
            data.unrelated_texts,
        )
        largest = max(stage.batch_size for stage in config.stages) * self.accelerator.num_processes
        if largest > len(self.sampler.examples):
            raise ValueError(
                f"The batch sizes of stages, times the number of processes, must be at most the "
                f"{len(self.sampler.examples)} facts to train on, got {largest}."
            )
        self.model = load_start(config)
        self.inputs = training_inputs(config, data, self.model, self.accelerator.num_processes)
        if config.model.shard_base:
            shard(self.model.lm, self.accelerator.device)
        else:
            self.model.lm.to(self.accelerator.device)
        if config.model.base_attn_implementation is not None:
            self.model.lm.set_attn_implementation(config.model.base_attn_implementation)
        self.objective = RecipeObjective(
            self.model,
            config,
            self.sampler,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        ).to(self.accelerator.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.objective), lr=0.0, weight_decay=0.0, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self.step = 0
        self.best_score = -math.inf
        self.evaluations_since_best = 0
        self.seconds = 0.0
        self.is_saved = False
        self.accelerator.register_for_checkpointing(self)

    # -------------------------------------------------------------- progress, as Accelerate saves it

    def state_dict(self) -> dict[str, Any]:
        """How far the run is."""
        return {name: getattr(self, name) for name in _PROGRESS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a run where `state` was saved."""
        for name in _PROGRESS:
            setattr(self, name, state[name])

    # -------------------------------------------------------------- the loop

    def train(self, resume: bool = False) -> Path:
        """Runs all stages and gives the directory of the best checkpoint.

        Args:
            resume: Whether to go on from `output_dir/checkpoint`, or from the copy that a killed run left beside it.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from, or a file of it is missing.
            FileExistsError: If an earlier run left one, or its best one, and it is not to be resumed.
            ValueError: If the run to be resumed was another, by its data, its start or a field of its configuration
                that decides what is learned, or a file of it is damaged; the message names it.
            OSError: With `push_to_hub`, before the first step if the repository cannot be written to, or at the end if
                the upload fails. One in between that fails is a warning.
        """
        checkpoint, best = self.output_dir / "checkpoint", self.output_dir / "best"
        found = self._find_copies(checkpoint, best) if resume else {}
        if not resume:
            refuse_earlier(checkpoint, best)
        if self.run.push_to_hub:
            error = self._try_on_main(self._create_repository)
            if error is not None:
                raise OSError(f"run.hub_model_id {self.run.hub_model_id!r} cannot be pushed to: {error}")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        start_tracker(self.accelerator, self.config)
        if resume:
            self._settle(found)
            self.accelerator.load_state(str(checkpoint))
        elif self.config.model.checkpoint is None and self.config.model.retriever is None:
            self.objective.fit_standardizer(self.sampler.draw(0, min(_CALIBRATION_FACTS, len(self.sampler.examples))))

        main = self.accelerator.is_main_process
        if main:
            cut_log(self.output_dir / METRICS_LOG, self.step)
        started = time.monotonic() - self.seconds
        with tqdm(total=self.config.num_steps, initial=self.step, desc="training", disable=not main) as bar:
            first = 0
            for number, stage in enumerate(self.config.stages):
                if self.step < first + stage.steps and not self._is_stopped():
                    fresh = self.step == first
                    self.objective.start_stage(stage, self.config.stages[number - 1] if number and fresh else None)
                    if fresh:  # Averages of other losses' gradients would make the first steps far too long or short.
                        self.optimizer.state.clear()
                    bar.set_description(stage.name)
                while self.step < first + stage.steps and not self._is_stopped():
                    losses = self._train_step(stage, self.step - first)
                    self.step += 1
                    self.seconds = time.monotonic() - started
                    bar.update()
                    if self.step % self.run.logging_steps == 0:
                        values = {name: round(loss.item(), 4) for name, loss in losses.items()}
                        bar.set_postfix(values)
                        self._log({"stage": stage.name, **values})
                    last = self.step == self.config.num_steps
                    evaluates = last or (self.step % self.run.eval_steps == 0 and stage.prompts != "answer")
                    if evaluates:
                        self._evaluate()
                    pushes = self._is_push_step() and not last
                    saves = last or pushes or self.step % self.run.save_steps == 0 or self._is_stopped()
                    if saves or (evaluates and not self.is_saved):  # Where there is a best, the run can be resumed.
                        self._save(checkpoint)
                    if pushes and (error := self._try_on_main(self._push)) is not None:
                        logger.warning(f"The upload at step {self.step} failed, and training goes on: {error}")
                first += stage.steps
        if self._is_stopped():
            logger.warning(f"Stopped at step {self.step}: no new best in {self.evaluations_since_best} evaluations.")
        error = self._try_on_main(self._push)
        self.accelerator.end_training()
        if error is not None:
            raise OSError(f"The training is done, but its upload failed; resume it to upload again: {error}")
        return best

    def _is_stopped(self) -> bool:
        patience = self.run.early_stopping_patience
        return patience is not None and self.evaluations_since_best >= patience

    def _train_step(self, stage: StageConfig, stage_step: int) -> dict[str, torch.Tensor]:
        """One optimizer step; its losses, averaged over batches and processes."""
        factor = learning_rate_factor(stage_step, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = getattr(stage, group["rate"]) * group["factor"] * factor
        if stage.mined_negatives and stage_step % self.config.objective.mining_steps == 0:
            self.objective.encode_all_facts()
        parts = []
        for number in range(self.run.gradient_accumulation_steps):
            draw = self.step * self.run.gradient_accumulation_steps + number
            batch = self.sampler.draw(draw, stage.batch_size * self.accelerator.num_processes, stage.answer_variants)
            with self.accelerator.accumulate(self.wrapped):
                with self.accelerator.autocast():
                    losses = self.wrapped(batch, stage, draw)
                total = sum((stage.weight(name) * loss for name, loss in losses.items()), start=torch.zeros(()))
                if not torch.isfinite(total):
                    raise FloatingPointError(
                        f"The loss is {total.item()} at step {self.step} of stage {stage.name!r}: "
                        "lower its learning rates."
                    )
                self.accelerator.backward(total)
                if self.accelerator.sync_gradients:
                    self._clip_gradients()
                self.optimizer.step()
                self._tell_of_step()
                self.optimizer.zero_grad()
            parts.append({name: loss.detach() for name, loss in losses.items()})
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return self.accelerator.reduce(means, "mean")

    def _tell_of_step(self) -> None:
        """Marks the weights as written to, as fused Adam does not: the model would keep what it encoded before."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                increment_version(parameter)

    def _clip_gradients(self) -> None:
        """Clips each part of the model by its own norm: the encoder's is a thousand times that of the others."""
        self.accelerator.unscale_gradients()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], self.run.max_grad_norm)

    def _evaluate(self) -> None:
        """Evaluates on the held-out facts; the best model so far, by the mean of its metrics, is kept.

        All processes do, since each may hold a part of the base; what the main one finds counts.
        """
        self.accelerator.wait_for_everyone()
        report = evaluate_editing(
            self.model,
            self.held_out,
            num_questions=self.config.data.num_eval_questions,
            beside=self.sampler.examples[: self.config.data.num_eval_training_facts],
        )
        score = [mean(report.metrics[kind] for kind in KINDS if kind in report.metrics)]
        if self.accelerator.is_main_process:
            metrics = {f"eval_{name}": round(value, 2) for name, value in report.metrics.items()}
            self._log(metrics)
            is_best = score[0] > self.best_score
            shown = ", ".join(f"{kind} {report.metrics[kind]:.1f}" for kind in KINDS if kind in report.metrics)
            tqdm.write(
                f"step {self.step}, on held-out facts: {shown}{' (the best so far)' if is_best else ''}", sys.stderr
            )
            if is_best:
                self._save_best(metrics)
        broadcast_object_list(score)
        self.evaluations_since_best = 0 if score[0] > self.best_score else self.evaluations_since_best + 1
        self.best_score = max(score[0], self.best_score)

    def _save_best(self, metrics: dict[str, float]) -> None:
        best = self.output_dir / "best"
        new, _ = beside(best)
        shutil.rmtree(new, ignore_errors=True)
        start = self.config.model
        self.model.save_pretrained(
            new,
            parts="prompts" if start.retriever else "all",
            retriever=start.retriever,
            retriever_revision=start.retriever_revision,
        )
        summary = json.dumps(self._summary(metrics), indent=2)
        (new / RUN_RECORD).write_text(f"{summary}\n", encoding="utf-8")
        shutil.copy(self.output_dir / METRICS_LOG, new)
        write_model_card(new, describe_run(new))
        replace(best)

    # -------------------------------------------------------------- the Hub

    def _is_push_step(self) -> bool:
        every = self.run.hub_steps if self.run.push_to_hub else None
        return every is not None and self.step % every == 0

    def _create_repository(self) -> None:
        create_repository(str(self.run.hub_model_id), private=self.run.hub_private_repo or None)

    def _push(self) -> None:
        """Uploads the best checkpoint so far with its card, if the configuration asks for it."""
        best = self.output_dir / "best"
        if self.run.push_to_hub and best.is_dir():
            message = f"Best checkpoint by step {self.step}"
            private = self.run.hub_private_repo or None
            push_checkpoint(best, str(self.run.hub_model_id), private=private, commit_message=message)

    def _try_on_main(self, action: Callable[[], None]) -> str | None:
        """Does something on the main process, and tells all of them what went wrong, if anything did."""
        errors: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                action()
            except (OSError, ValueError) as error:
                errors = [str(error)]
        broadcast_object_list(errors)
        return errors[0]

    # -------------------------------------------------------------- files

    def _summary(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "step": self.step,
            "hours": round(self.seconds / 3600, 3),
            "device": str(self.accelerator.device),
            "num_processes": self.accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in _VERSIONED},
            "encoder_revision": base_revision(self.config.model.encoder, self.config.model.encoder_revision, None),
            "metrics": metrics,
            "config": self.config.model_dump(mode="json"),
            "earlier_runs": earlier_runs(self.config.model.checkpoint) if self.config.model.checkpoint else [],
        }

    def _save(self, checkpoint: Path) -> None:
        """Writes the checkpoint beside the last one, whose place it then takes."""
        new, _ = beside(checkpoint)
        if self.accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)  # What a killed run did not finish.
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            has_best = (self.output_dir / "best").is_dir()
            seal(new, {"step": self.step, "has_best": has_best, "inputs": self.inputs})
            replace(checkpoint)
        self.is_saved = True

    def _find_copies(self, checkpoint: Path, best: Path) -> dict[Path, Path]:
        """Where what is to be resumed lies, by where it belongs. Nothing is changed."""
        copy, record = find_run(checkpoint, self.inputs)
        return {checkpoint: copy} | ({best: find_best(best)} if record["has_best"] else {})

    def _settle(self, found: Mapping[Path, Path]) -> None:
        self.accelerator.wait_for_everyone()  # All have found it.
        if self.accelerator.is_main_process:
            for directory, copy in found.items():
                settle(copy, directory)
        self.accelerator.wait_for_everyone()
        self.is_saved = True

    def _log(self, values: dict[str, Any]) -> None:
        self.accelerator.log(
            {name: value for name, value in values.items() if isinstance(value, float)}, step=self.step
        )
        if self.accelerator.is_main_process:
            line = {"step": self.step, "seconds": round(self.seconds, 1), **values}
            with open(self.output_dir / METRICS_LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Rises over `warmup_steps`, then falls along a cosine to a tenth at the end of the stage, or stays."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    if stage.lr_scheduler_type == "constant":
        return 1.0
    share = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
