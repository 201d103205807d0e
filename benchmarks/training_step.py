"""Training steps per second: this library's joint step against a plain loop, on the same models, facts and losses.

The plain loop does what the authors' code does: a call of the language model for each of reliability, generality and
locality, and one of the unedited model; texts padded to the longest; logits for every token of the vocabulary at every
position; an encoder call for each kind of text. Both sides take optimizer steps in turn, so that other work
on the machine slows both; at the first step, their losses are compared.

    python benchmarks/training_step.py --train-file data/counterfact-train.json
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import load_examples
from recipe_hf.modeling.facts import compose_statement
from recipe_hf.training.config import StageConfig, TrainingConfig
from recipe_hf.training.objective import RecipeObjective
from recipe_hf.training.sampling import FactSampler, TrainingFact

LEARNING_RATE = 1e-5


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
    base_model: Annotated[str, typer.Option()] = "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    encoder: Annotated[str, typer.Option()] = "models/minilm",
    batch_size: Annotated[int, typer.Option(help="Facts in a step; the paper takes 8.")] = 8,
    negatives: Annotated[int, typer.Option(help="Further facts in our contrastive batch.")] = 0,
    steps: Annotated[int, typer.Option(help="Timed steps of each side, after two untimed ones.")] = 10,
    device: Annotated[str, typer.Option()] = "cpu",
) -> None:
    """Times both sides and prints the ratio."""
    stage = StageConfig(
        "joint",
        steps,
        contrastive_batch_size=batch_size + negatives,
        query_batch_size=batch_size,
        editing_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        encoder_learning_rate=LEARNING_RATE,
        loss_weights={"read_out": 0.0, "continuation": 0.0},
    )
    buckets = 4 if device == "cpu" else 1
    config = TrainingConfig(
        base_model, str(train_file), "runs/benchmark", (stage,), encoder=encoder, length_buckets=buckets
    )
    sampler = FactSampler(load_examples(train_file), seed=0, answer_resampling=0.0, subject_share=0.0)

    def objective() -> RecipeObjective:
        torch.manual_seed(0)
        model = RecipeForCausalLM.from_base_pretrained(base_model, encoder=encoder, dtype=torch.float32)
        model.lm.to(device)
        made = RecipeObjective(model, config, sampler).to(device)
        made.fit_standardizer(sampler.draw(0, 64))
        made.start_stage(stage, None)
        return made

    ours, theirs = objective(), objective()
    plain = PlainLoop(theirs.model, config.temperature)

    def stepper(owner: RecipeObjective, losses: Callable[[int], dict[str, Tensor]]) -> Callable[[int], Any]:
        trained = [p for p in owner.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)

        def step(number: int) -> tuple[float, dict[str, float]]:
            start = time.perf_counter()
            found = losses(number)
            torch.stack(list(found.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            values = {name: loss.item() for name, loss in found.items()}
            return time.perf_counter() - start, values

        return step

    size = stage.batch_size
    sides = {
        "plain loop": stepper(theirs, lambda n: plain.losses(sampler.draw(n, size)[:batch_size])),
        "recipe-hf": stepper(ours, lambda n: ours(sampler.draw(n, size), stage, n)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(steps + 2):
        outcome = {name: side(number) for name, side in sides.items()}
        (_, expected), (_, found) = outcome.values()
        if number == 0 and not negatives:  # Later, rounding has led the two apart.
            worst = max(abs(expected[name] - found[name]) for name in expected)
            if worst > 0.02:
                raise AssertionError(f"step {number}: the losses differ by {worst:.4f}: {expected}, {found}")
        if number >= 2:
            for name, (taken, _) in outcome.items():
                seconds[name].append(taken)
    for name, taken in seconds.items():
        print(f"{name:>12}: {1 / median(taken):.3f} steps per second (median of {steps})")
    ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"ratio, pair by pair: {median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    typer.run(main)
