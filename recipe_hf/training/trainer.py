"""The training loop: stages, logs, held-out evaluation, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers.utils import logging

from ..datasets import load_counterfact
from ..evaluation.editing import KINDS, evaluate_editing
from ..modeling.model import RecipeForCausalLM
from .config import StageConfig, TrainingConfig
from .objective import RecipeObjective, parameter_groups
from .sampling import FactSampler

logger = logging.get_logger(__name__)

_CALIBRATION_FACTS = 512


class Trainer:
    """Trains a RECIPE model as a [`TrainingConfig`] says, and leaves the best checkpoint in `output_dir/best`.

    Every step's facts follow from the step's number, so a resumed run goes on as an unbroken one would.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        set_seed(config.seed)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.log_with,
            project_dir=config.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        examples = load_counterfact(config.train_file)
        if len(examples) <= config.num_eval_examples:
            raise ValueError(
                f"num_eval_examples must be below the {len(examples)} rows of {config.train_file}, "
                f"got {config.num_eval_examples}."
            )
        self.held_out = examples[-config.num_eval_examples :]
        self.sampler = FactSampler(
            examples[: -config.num_eval_examples],
            config.seed,
            config.answer_resampling,
            config.subject_share,
            config.same_template_share,
        )
        largest = max(stage.batch_size for stage in config.stages)
        if largest > len(self.sampler.examples):
            raise ValueError(
                f"The batch sizes of stages must be at most the {len(self.sampler.examples)} facts to train on, "
                f"got {largest}."
            )
        self.model = RecipeForCausalLM.from_base_pretrained(
            config.base_model,
            encoder=config.encoder,
            base_model_name_or_path=config.base_model_name_or_path,
            revision=config.base_model_revision or "main",
            dtype=torch.float32 if config.mixed_precision == "no" else "auto",
            knowledge_dim=config.knowledge_dim,
            num_continuous_prompt_tokens=config.num_continuous_prompt_tokens,
            num_sentinel_tokens=config.num_sentinel_tokens,
        )
        self.model.lm.to(self.accelerator.device)
        self.objective = RecipeObjective(self.model, config, self.sampler).to(self.accelerator.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.objective), lr=0.0, weight_decay=0.0)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self.step = 0
        self.best_score = -math.inf
        self.seconds = 0.0
        self.accelerator.register_for_checkpointing(self)

    # -------------------------------------------------------------- progress, as Accelerate saves it

    def state_dict(self) -> dict[str, Any]:
        """How far the run is."""
        return {"step": self.step, "best_score": self.best_score, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a run where `state` was saved."""
        self.step, self.best_score, self.seconds = state["step"], state["best_score"], state["seconds"]

    # -------------------------------------------------------------- the loop

    def train(self, resume: bool = False) -> Path:
        """Runs all stages and gives the directory of the best checkpoint.

        Args:
            resume: Whether to go on from `output_dir/checkpoint`.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from.
            FileExistsError: If there is one and it is not to be resumed.
        """
        checkpoint = self.output_dir / "checkpoint"
        if resume and not checkpoint.is_dir():
            raise FileNotFoundError(f"{checkpoint} does not exist, so there is nothing to resume.")
        if checkpoint.is_dir() and not resume:
            raise FileExistsError(f"{checkpoint} holds an earlier run: resume it, or choose another output_dir.")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.config.log_with:
            self.accelerator.init_trackers("recipe-hf", config={"seed": self.config.seed})
        if resume:
            self.accelerator.load_state(str(checkpoint))
        else:
            self.objective.fit_standardizer(self.sampler.draw(0, min(_CALIBRATION_FACTS, len(self.sampler.examples))))

        main = self.accelerator.is_main_process
        if main:
            self._cut_log()
        started = time.monotonic() - self.seconds
        with tqdm(total=self.config.num_steps, initial=self.step, desc="training", disable=not main) as bar:
            first = 0
            for number, stage in enumerate(self.config.stages):
                if self.step < first + stage.steps:
                    fresh = self.step == first
                    self.objective.start_stage(stage, self.config.stages[number - 1] if number and fresh else None)
                    bar.set_description(stage.name)
                while self.step < first + stage.steps:
                    losses = self._train_step(stage, self.step - first)
                    self.step += 1
                    self.seconds = time.monotonic() - started
                    bar.update()
                    if self.step % self.config.logging_steps == 0:
                        values = {name: round(loss.item(), 4) for name, loss in losses.items()}
                        bar.set_postfix(values)
                        self._log({"stage": stage.name, **values})
                    last = self.step == self.config.num_steps
                    if last or (self.step % self.config.eval_steps == 0 and stage.prompts == "statement"):
                        self._evaluate()
                    if last or self.step % self.config.save_steps == 0:
                        self._save(checkpoint)
                first += stage.steps
        self.accelerator.end_training()
        return self.output_dir / "best"

    def _train_step(self, stage: StageConfig, stage_step: int) -> dict[str, torch.Tensor]:
        factor = learning_rate_factor(stage_step, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = getattr(stage, group["rate"]) * group["factor"] * factor
        processes = self.accelerator.num_processes
        facts = self.sampler.draw(
            self.step * processes + self.accelerator.process_index, stage.batch_size, stage.answer_variants
        )
        with self.accelerator.autocast():
            losses = self.wrapped(facts, stage, self.step)
        total = sum((stage.weight(name) * loss for name, loss in losses.items()), start=torch.zeros(()))
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"The loss is {total.item()} at step {self.step} of stage {stage.name!r}: lower its learning rates."
            )
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses

    def _evaluate(self) -> None:
        """Evaluates on the held-out facts; the best model so far, by the mean of the three metrics, is kept."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        report = evaluate_editing(self.model, self.held_out, num_questions=self.config.num_eval_questions)
        metrics = {f"eval_{name}": round(value, 2) for name, value in report.metrics.items()}
        self._log(metrics)
        score = sum(report.metrics[kind] for kind in KINDS) / len(KINDS)
        logger.info(f"step {self.step}: {metrics}")
        if score > self.best_score:
            self.best_score = score
            self.model.save_pretrained(self.output_dir / "best")
            summary = json.dumps(self._summary(metrics), indent=2)
            (self.output_dir / "best" / "training.json").write_text(f"{summary}\n", encoding="utf-8")

    def _summary(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "step": self.step,
            "hours": round(self.seconds / 3600, 3),
            "device": str(self.accelerator.device),
            "num_processes": self.accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
            "metrics": metrics,
            "config": dataclasses.asdict(self.config),
        }

    def _save(self, checkpoint: Path) -> None:
        """Writes the checkpoint beside the last one, then takes its place."""
        new = checkpoint.with_name("checkpoint.new")
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            old = checkpoint.with_name("checkpoint.old")
            shutil.rmtree(old, ignore_errors=True)
            if checkpoint.is_dir():
                os.replace(checkpoint, old)
            os.replace(new, checkpoint)
            shutil.rmtree(old, ignore_errors=True)

    def _cut_log(self) -> None:
        """Drops what an interrupted run logged after its last checkpoint, for these steps come again."""
        path = self.output_dir / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _log(self, values: dict[str, Any]) -> None:
        self.accelerator.log(
            {name: value for name, value in values.items() if isinstance(value, float)}, step=self.step
        )
        if self.accelerator.is_main_process:
            line = {"step": self.step, "seconds": round(self.seconds, 1), **values}
            with open(self.output_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Rises over `warmup_steps`, then falls along a cosine to a tenth at the end of the stage."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    share = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
