"""Training steps per second: this library's joint step against a plain loop, on the same models, facts and losses.

The plain loop does what the authors' code does: a call of the language model for each of reliability, generality and
locality, and one of the unedited model; texts padded to the longest; logits for every token of the vocabulary at every
position; an encoder call for each kind of text; PyTorch's Adam as it comes. All sides take optimizer steps in turn, so
that other work on the machine slows all; at the first step, their losses are compared. `--levers` also takes back
what speeds up ours, one thing at a time. Prints a Markdown table.

    python benchmarks/training_step.py --train-file data/counterfact-train.json
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import load_examples
from recipe_hf.knowledge.facts import compose_statement
from recipe_hf.training.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TrainingConfig,
)
from recipe_hf.training.objective import RecipeObjective, parameter_groups
from recipe_hf.training.sampling import FactSampler, TrainingFact

LEARNING_RATE = 1e-5
#: How far losses may be from the plain loop's in float32, as a share of them, or absolutely where they are below 1.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


class Clock(StrEnum):
    """What time is taken."""

    wall = "wall"
    cpu = "cpu"


@dataclass(frozen=True)
class Side:
    """One way to take a step.

    Args:
        plain: Whether it is the plain loop.
        precision: `float32`, or `bfloat16`: autocast, and, but for the plain loop, the base held in bfloat16 too.
        changes: Fields of `TrainingConfig`, by dotted name, unlike those of our side.
        fused_adam: Whether Adam is PyTorch's fused one.
    """

    plain: bool = False
    precision: str = "float32"
    changes: dict[str, Any] = field(default_factory=dict)
    fused_adam: bool = True


PLAIN = "plain loop, float32"
SIDES = {
    PLAIN: Side(plain=True, fused_adam=False),
    "recipe-hf, float32": Side(),
    "plain loop, bfloat16": Side(plain=True, precision="bfloat16", fused_adam=False),
    "recipe-hf, bfloat16": Side(precision="bfloat16"),
}
LEVERS = {
    "float32, rows padded in 4 calls instead of packed": Side(changes={"objective.pack_rows": False}),
    "float32, encoder's texts in one padded call": Side(changes={"objective.length_buckets": 1}),
    "float32, Adam not fused": Side(fused_adam=False),
}


class PlainLoop:
    """Algorithm 1 written down directly."""

    def __init__(self, model: RecipeForCausalLM, temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        assert model.tokenizer is not None
        self.tokenizer = copy.deepcopy(model.tokenizer)
        self.tokenizer.padding_side = "right"

    def features(self, texts: Sequence[str]) -> Tensor:
        """Standardised encoder features of one padded batch."""
        retriever: Any = self.model.retriever
        batch = retriever.tokenizer(list(texts), return_tensors="pt", padding=True).to(self.model.device)
        return retriever.standardizer(retriever.features(**batch))

    def logits(self, prompts: Sequence[str], answers: Sequence[str], prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits at every position, and labels that are -100 outside the answers."""
        lm: Any = self.model.lm
        rows = [f"{p} {a}" for p, a in zip(prompts, answers, strict=True)]
        batch = self.tokenizer(rows, return_tensors="pt", padding=True).to(self.model.device)
        embeds, mask = lm.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"]
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        for i, prompt in enumerate(prompts):
            labels[i, : len(self.tokenizer(prompt)["input_ids"])] = -100
        if prefix is not None:
            embeds = torch.cat([prefix, embeds], dim=1)
            mask = F.pad(mask, (prefix.shape[1], 0), value=1)
        logits = lm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        return logits[:, -labels.shape[1] :][:, :-1].float(), labels[:, 1:]

    def losses(self, facts: Sequence[TrainingFact]) -> dict[str, Tensor]:
        """The seven losses of a batch."""
        retriever = self.model.retriever
        examples, answers = [fact.example for fact in facts], [fact.answer for fact in facts]
        prompts, rephrased = [e.prompt for e in examples], [e.rephrase_prompt for e in examples]
        unrelated = [e.locality_prompt for e in examples]
        statements = [compose_statement(p, a) for p, a in zip(prompts, answers, strict=True)]
        keys = retriever.mlp_k(self.features(statements))
        queries = [retriever.mlp_q(self.features(texts)) for texts in (prompts, rephrased, unrelated)]
        candidates = torch.cat([retriever.encode_sentinel().unsqueeze(0), keys])
        factor = self.model.config.scale / self.temperature
        scores = [query @ candidates.T * factor for query in queries]
        own = torch.arange(1, len(facts) + 1, device=keys.device)
        sentinel = torch.zeros_like(own)
        absent = F.one_hot(own, len(facts) + 1).bool()
        without = [s.masked_fill(absent, -torch.inf) for s in scores[:2]]
        prefix = self.model.prompt_encoder(keys)
        losses = {
            "neighbor_reliability": F.cross_entropy(scores[0], own),
            "neighbor_generality": F.cross_entropy(scores[1], own),
            "sentinel_locality": F.cross_entropy(scores[2], sentinel),
            "sentinel_edit": (F.cross_entropy(without[0], sentinel) + F.cross_entropy(without[1], sentinel)) / 2,
        }
        for name, texts in (("reliability", prompts), ("generality", rephrased)):
            logits, labels = self.logits(texts, answers, prefix)
            tokens = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
            losses[name] = (tokens.sum(1) / (labels != -100).sum(1)).mean()
        kept = [e.locality_answer for e in examples]
        logits, labels = self.logits(unrelated, kept, prefix)
        with torch.no_grad():
            base_logits, _ = self.logits(unrelated, kept, None)
        p, q = base_logits.log_softmax(-1), logits.log_softmax(-1)
        divergence = (p.exp() * (p - q)).sum(-1) * (labels != -100)
        losses["locality"] = (divergence.sum(1) / (labels != -100).sum(1)).mean()
        return losses


def main(
    train_file: Annotated[Path, typer.Option(help="CounterFact, or another data set that load_examples knows.")],
    base_model: Annotated[str, typer.Option()] = "models/smollm2-135m-instruct",
    encoder: Annotated[str, typer.Option()] = "models/minilm",
    batch_size: Annotated[int, typer.Option(help="Facts in a step; the paper takes 8.")] = 8,
    steps: Annotated[int, typer.Option(help="Timed steps of each side, after two untimed ones.")] = 10,
    device: Annotated[str, typer.Option()] = "cpu",
    attention: Annotated[str, typer.Option(help="Attention of our base in bfloat16.")] = "eager",
    bfloat16: Annotated[bool, typer.Option(help="Whether to time bfloat16 too.")] = True,
    levers: Annotated[bool, typer.Option(help="Whether to time ours with one thing taken back.")] = False,
    clock: Annotated[Clock, typer.Option(help="cpu, on a busy machine, is the time of this process alone.")] = (
        Clock.wall
    ),
) -> None:
    """Times all sides and prints their ratios."""
    stage = StageConfig(
        name="joint",
        steps=steps,
        contrastive_batch_size=batch_size,
        editing_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        encoder_learning_rate=LEARNING_RATE,
        loss_weights={"read_out": 0.0, "continuation": 0.0},
    )
    config = TrainingConfig(
        model=ModelConfig(base_model=base_model, encoder=encoder),
        data=DataConfig(train_file=str(train_file)),
        stages=[stage],
        run=RunConfig(output_dir="runs/benchmark"),
        objective=ObjectiveConfig(length_buckets=4 if device == "cpu" else 1, pack_rows=True),
    )
    sampler = FactSampler(load_examples(train_file), SamplingConfig(), seed=0)
    now = time.perf_counter if clock is Clock.wall else time.process_time
    first = RecipeForCausalLM.from_base_pretrained(base_model, encoder=encoder, dtype=torch.float32)
    tokenizer = first.tokenizer
    bases = {True: first.lm.to(device), False: copy.deepcopy(first.lm).to(torch.bfloat16)}
    bases[False].set_attn_implementation(attention)

    def stepper(side: Side) -> Callable[[int], tuple[float, dict[str, float]]]:
        base = bases[side.plain or side.precision == "float32"]
        torch.manual_seed(0)
        model = RecipeForCausalLM.from_base_pretrained(base, encoder=encoder, tokenizer=tokenizer)
        objective = RecipeObjective(model, config.changed(side.changes), sampler).to(device)
        objective.fit_standardizer(sampler.draw(0, min(64, len(sampler.examples))))
        objective.start_stage(stage, None)
        plain = PlainLoop(model, config.objective.temperature)
        trained = [p for group in parameter_groups(objective) for p in group["params"] if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, fused=side.fused_adam)
        in_half = torch.autocast(device, torch.bfloat16) if side.precision == "bfloat16" else nullcontext()

        def step(number: int) -> tuple[float, dict[str, float]]:
            facts = sampler.draw(number, batch_size)
            start = now()
            with in_half:
                losses = plain.losses(facts) if side.plain else objective(facts, stage, number)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            values = {name: loss.item() for name, loss in losses.items()}
            return now() - start, values

        return step

    sides = {name: side for name, side in SIDES.items() if bfloat16 or side.precision == "float32"}
    sides |= LEVERS if levers else {}
    steppers = {name: stepper(side) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    furthest: dict[str, float] = {}
    for number in range(steps + 2):
        outcome = {name: step(number) for name, step in steppers.items()}
        if number == 0:  # Later, rounding has led them apart.
            _, expected = outcome[PLAIN]
            for name, (_, found) in outcome.items():
                furthest[name] = max(abs(found[n] - x) / max(1.0, abs(x)) for n, x in expected.items())
                if not furthest[name] <= TOLERANCE[sides[name].precision]:
                    raise AssertionError(f"{name}: the losses differ by {furthest[name]:.2g}: {expected}, {found}")
        if number >= 2:
            for name, (taken, _) in outcome.items():
                seconds[name].append(taken)

    processor = f"{torch.get_num_threads()} threads of {torch.backends.cpu.get_cpu_capability()}"
    print(f"{batch_size} facts in a step, {steps} steps, {device} ({processor}), {clock.value} time\n")
    print("| side | seconds per step | plain loop's steps per second, times | losses differ by at most |")
    print("|---|---:|---:|---:|")
    for name, times in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds[PLAIN], times, strict=True))
        print(
            f"| {name} | {median(times):.2f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {furthest[name]:.1g} |"
        )


if __name__ == "__main__":
    typer.run(main)
