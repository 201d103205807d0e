"""The training loop of the verifier: logs, evaluations, checkpoints to resume from, and the calibrated result."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...evaluation.inputs import versions
from ...modeling.loading import checkpoint_directory
from ...modeling.model import RecipeForCausalLM
from ...modeling.verifier import is_update
from ..run_record import METRICS_LOG
from ..saving import beside, cut_log, find_run, refuse_earlier, replace, seal, settle
from .calibration import (
    brier_score,
    development_pairs,
    fit_calibration,
    margins,
    summarise,
    supersede_threshold,
    weights_of,
)
from .config import VerifierConfig
from .mining import mine
from .objective import losses
from .rows import load_data
from .sampling import PairSampler
from .start import new_verifier, run_inputs
from .verified_checkpoint import write_checkpoint

_STATE = "state.pt"
_LEAST_RATE = 0.02


class VerifierTrainer:
    """Trains a verifier as a [`VerifierConfig`] says, and leaves the checkpoint with it in `output_dir/best`.

    Every step's pairs follow from the step's number, so a resumed run goes on as an unbroken one would.

    Raises:
        OSError: If the checkpoint, the encoder or a file of data cannot be found.
        ValueError: If one of them cannot be used.
    """

    def __init__(self, config: VerifierConfig) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.directory = checkpoint_directory(config.checkpoint)
        self.data = load_data(config.sources)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = RecipeForCausalLM.from_pretrained(self.directory, base_model=False, verifier=False)
        if model.config.retriever_name_or_path is not None:
            raise ValueError(
                f"checkpoint must have a retriever of its own, got {config.checkpoint!r}, which names "
                f"{model.config.retriever_name_or_path!r}: the verifier stands beside that."
            )
        self.recipe_config = model.config
        self.retriever = model.retriever.requires_grad_(False).to(self.device)
        self.verifier = new_verifier(config, model).to(self.device)
        self.inputs = run_inputs(config, self.data, self.retriever, self.verifier)
        shares = {source.name: source.share for source in config.sources}
        with self._autocast():
            self.mined = mine(self.data, self.retriever, self.output_dir, config.seed)
        self.sampler = PairSampler(self.data, self.mined, shares, config.batch_size, config.mined_share, config.seed)
        self.pairs = development_pairs(self.data, self.mined, config.num_eval_pairs, config.seed)
        self.is_update = torch.tensor([is_update(pair.query) for pair in self.pairs])
        kinds = {pair.kind == "ask" for pair, is_one in zip(self.pairs, self.is_update, strict=True) if not is_one}
        if len(kinds) < 2:
            raise ValueError("sources must have asks and misses for development, got none: num_eval_rows gives them.")
        self.answers = torch.tensor([float(pair.kind == "ask") for pair in self.pairs])
        self.weights = weights_of(self.pairs, shares) * ~self.is_update
        self.weights /= self.weights.sum()
        heads = [*self.verifier.head.parameters(), *self.verifier.span.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.verifier.encoder.parameters()), "peak": config.learning_rate},
                {"params": heads, "peak": config.head_learning_rate},
            ],
            lr=0.0,
            weight_decay=config.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0

    def train(self, resume: bool = False) -> Path:
        """Runs all steps and gives the directory of the checkpoint with the verifier.

        Args:
            resume: Whether to go on from `output_dir/checkpoint`, or from the copy that a killed run left beside it.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from, or a file of it is missing.
            FileExistsError: If an earlier run left one, or its result, and it is not to be resumed.
            ValueError: If the run to be resumed was another, or a file of it is damaged; the message names it.
            FloatingPointError: If the loss is no number.
        """
        checkpoint, best = self.output_dir / "checkpoint", self.output_dir / "best"
        if resume:
            copy, _ = find_run(checkpoint, self.inputs)
            settle(copy, checkpoint)
            self._load(checkpoint)
        else:
            refuse_earlier(checkpoint, best)
        cut_log(self.output_dir / METRICS_LOG, self.step)
        started = time.monotonic() - self.seconds
        config = self.config
        with tqdm(total=config.steps, initial=self.step, desc="training the verifier") as bar:
            while self.step < config.steps:
                found = self._train_step()
                self.step += 1
                self.seconds = time.monotonic() - started
                bar.update()
                last = self.step == config.steps
                if self.step % config.logging_steps == 0:
                    self._log(**{name: round(loss.item(), 4) for name, loss in found.items()})
                if self.step % config.eval_steps == 0 and not last:
                    with self._autocast():
                        self._log(development=summarise(self.pairs, self._read()))
                if self.step % config.save_steps == 0 or last:
                    self._save(checkpoint)
        self._finish(best)
        return best

    def _train_step(self) -> dict[str, torch.Tensor]:
        """One optimizer step; its losses."""
        factor = learning_rate_factor(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(random.Random(f"{self.config.seed} {self.step}").getrandbits(63))  # Of dropout.
        self.verifier.train()
        with self._autocast():
            found = losses(self.verifier, self.retriever, self.sampler.draw(self.step), self.config)
        if not torch.isfinite(found["loss"]):
            raise FloatingPointError(
                f"The loss is {found['loss'].item()} at step {self.step}: lower the learning rates."
            )
        self.optimizer.zero_grad()
        found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.verifier.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return found

    def _read(self) -> torch.Tensor:
        """Logits of the development pairs."""
        self.verifier.eval()
        return self.verifier.read(self.retriever, [(pair.query, pair.statement) for pair in self.pairs])[:, 0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def _save(self, checkpoint: Path) -> None:
        new, _ = beside(checkpoint)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        state = {"verifier": self.verifier.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, new / _STATE)
        seal(new, {"step": self.step, "inputs": self.inputs})
        replace(checkpoint)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / _STATE, map_location=self.device, weights_only=True)
        self.verifier.load_state_dict(state["verifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _finish(self, best: Path) -> None:
        """Calibrates the verifier, as it is published, and writes the checkpoint with it."""
        self.verifier.to(torch.float16).to(torch.float32)
        self.verifier.calibration.copy_(torch.tensor([0.0, 1.0, 0.0]))
        logits, above = self._read(), margins(self.retriever, self.recipe_config, self.pairs)
        self.verifier.calibration.copy_(fit_calibration(logits, above, self.answers, self.weights))
        calibrated = self.verifier.cpu().calibrated(logits, above)
        of_updates = logits[self.is_update], self.answers[self.is_update]
        threshold = supersede_threshold(*of_updates, self.config.superseded_share)
        decided = calibrated.where(~self.is_update, logits - (threshold or 0.0))
        metrics = {
            "calibration": [round(value, 4) for value in self.verifier.calibration.tolist()],
            "brier_uncalibrated": round(brier_score(logits, self.answers, self.weights), 4),
            "brier": round(brier_score(calibrated, self.answers, self.weights), 4),
            "supersede_threshold": threshold,
            "development": summarise(self.pairs, decided),
        }
        self._log(**metrics)
        record = {
            "step": self.step,
            "hours": round(self.seconds / 3600, 3),
            "device": str(self.device),
            "num_threads": torch.get_num_threads(),
            "versions": versions("recipe-hf", "torch", "transformers"),
            "metrics": metrics,
            "config": self.config.model_dump(mode="json"),
        }
        write_checkpoint(self.directory, best, self.verifier, self.config, record, self.output_dir / METRICS_LOG)
        self.verifier.to(self.device)

    def _log(self, **values: Any) -> None:
        line = {"step": self.step, "seconds": round(self.seconds, 1), **values}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output_dir / METRICS_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def learning_rate_factor(step: int, config: VerifierConfig) -> float:
    """Rises over `warmup_steps`, then falls along a line, to a fiftieth at least."""
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * max(_LEAST_RATE, 1 - step / config.steps)
