"""MEND: a network that makes an edit of a gradient (Mitchell et al., ICLR 2022, arXiv 2110.11309)."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import Tensor, nn

from ...datasets import EditExample
from ...teacher_forcing import Row, answer_logits, tokenize_rows
from ..inputs import describe_rows, digest
from .editor import Editor
from .kept import keep
from .memory.gradients import Factors, answer_loss, divergence, gradient_factors, updated
from .memory.layers import SavedWeights, find_layers
from .memory.moments import base_mark

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


class Running(nn.Module):
    """Mean and deviation, channel by channel, of all vectors seen while it learned."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> None:
        """Takes vectors `[n, width]` in."""
        self.count += len(vectors)
        share = len(vectors) / self.count
        self.mean += share * (vectors.mean(0) - self.mean)
        self.square += share * (vectors.square().mean(0) - self.square)

    def forward(self, vectors: Tensor) -> Tensor:
        deviation = (self.square - self.mean.square()).clamp(min=0).sqrt()
        return (vectors - self.mean) / (deviation + 1e-7)


class GradientNetwork(nn.Module):
    """From input and gradient of a map at a token to those of an edit (eq. 3 of the paper); the identity at first.

    Two residual blocks of low rank, shared by all layers, each with a scale and an offset of its own for each layer.

    Args:
        key_size: Width of the input.
        value_size: Width of the gradient.
        num_layers: How many layers share it.
        rank: Of the blocks.
    """

    def __init__(self, key_size: int, value_size: int, num_layers: int, rank: int) -> None:
        super().__init__()
        width = key_size + value_size
        self.sizes = key_size, value_size
        self.keys = nn.ModuleList(Running(key_size) for _ in range(num_layers))
        self.gradients = nn.ModuleList(Running(value_size) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(2))
        ups = [nn.Linear(rank, width) for _ in range(2)]
        for up in ups:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.up = nn.ModuleList(ups)
        self.scales = nn.Parameter(torch.ones(2, num_layers, width))
        self.offsets = nn.Parameter(torch.zeros(2, num_layers, width))
        #: The step of each layer, and of MALMEN the logarithm of its ridge.
        self.rates = nn.Parameter(torch.full((num_layers,), 1e-4))
        self.log_ridges = nn.Parameter(torch.zeros(num_layers))

    def learn(self, index: int, factors: Factors) -> None:
        """Takes factors into the means and deviations of a layer."""
        for running, vectors in zip(self.running(index), factors, strict=True):
            running.learn(vectors)

    def running(self, index: int) -> tuple[Running, Running]:
        """The means and deviations of a layer's inputs and gradients."""
        keys, gradients = self.keys[index], self.gradients[index]
        assert isinstance(keys, Running) and isinstance(gradients, Running)
        return keys, gradients

    def forward(self, index: int, factors: Factors) -> Factors:
        """Factors of an edit, `[n, d_key]` and `[n, d_llm]`, for those of a gradient at the layer `index`."""
        state = torch.cat([self.keys[index](factors[0]), self.gradients[index](factors[1])], -1)
        for i in range(2):
            inner = self.scales[i, index] * self.up[i](self.down[i](state)) + self.offsets[i, index]
            state = state + inner.relu()
        key, gradient = state.split(self.sizes, -1)
        return key, gradient


class Mend(Editor):
    """Turns the gradient of a fact into a change of the last layers' MLPs that says it and leaves the rest alone.

    The gradient of a matrix is a sum of products d u^T, one for each token (see `gradient_factors`). A network makes
    of u and d others, and the edit is

        W' = W - a sum d~ u~^T,

    with a step a for each layer, which is learned. The network is trained beforehand, through the edit: on the
    likelihood of the answer to a rephrasing, times 0.1, and on the divergence of the edited model from the base at an
    unrelated question (eq. 4).

    Published: the last three layers, the network's form, its start, the weights of the losses, steps that start at
    1e-4. Chosen here: the last map of each MLP alone, where the paper has both; a rank of 256 of 1,920; Adam at 1e-4
    rather than 1e-6, for the network as for the steps, as there are thousands of training steps to spare, not hundreds
    of thousands; gradients clipped at norm 1.

    Args:
        model: The model.
        steps: Training steps at most.
        seconds: No training step is begun after this long.
        num_layers: How many of the last layers are edited.
        rank: Of the network.
        learning_rate: Of Adam.
        batch_size: Facts of one edit in training.
        directory: Where trained networks are kept; by default beside the Hub's cache.

    Raises:
        ValueError: If the layers of the model cannot be found, or a number is not above 0.
    """

    changes_model = True
    facts_at_once: int | None = 1
    _edit_weight = 0.1

    def __init__(
        self,
        model: RecipeForCausalLM,
        steps: int = 2000,
        seconds: float = 3600.0,
        num_layers: int = 3,
        rank: int = 256,
        learning_rate: float = 1e-4,
        batch_size: int = 1,
        directory: Path | None = None,
    ) -> None:
        super().__init__(model)
        numbers = {"steps": steps, "num_layers": num_layers, "rank": rank, "batch_size": batch_size}
        for name, value in (numbers | {"seconds": seconds}).items():
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        self.layers = find_layers(self.lm)[-num_layers:]
        self.steps = steps
        self.seconds = seconds
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        weight = self.layers[0].weight()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = GradientNetwork(weight.shape[1], weight.shape[0], len(self.layers), rank).to(weight.device)
        self.base = base_mark(self.lm, self.layers)
        self.directory = Path(constants.HF_HOME) / "recipe-hf" / "editing-networks" if directory is None else directory
        self.trained = 0
        self.saved = SavedWeights()
        self.settings |= numbers | {"layers": [layer.number for layer in self.layers], "learning rate": learning_rate}

    # ------------------------------------------------------------------ training

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        """Trains the network on all `facts`, or loads what was trained so on this base before."""
        path = self.directory / f"{self._mark(facts)}.safetensors"
        if not path.is_file():
            steps, loss = self._train(facts)
            keep(path, self.network.state_dict(), {"steps": str(steps), "loss": str(round(loss, 4))})
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self.network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        self.trained = int(metadata["steps"])
        self.settings |= {"training steps": self.trained, "last training loss": float(metadata["loss"])}

    def _mark(self, facts: Sequence[EditExample]) -> str:
        """Tells training on these facts, on this base, from all other."""
        budget = [self.steps, self.seconds, self.learning_rate, self.batch_size, len(self.layers)]
        shapes = [f"{name} {list(tensor.shape)}" for name, tensor in self.network.state_dict().items()]
        return digest([type(self).__name__, str(budget), *shapes, self.base, describe_rows(facts)])

    def _train(self, facts: Sequence[EditExample]) -> tuple[int, float]:
        """Trains the network; gives the number of steps, and the mean loss of the last fifty."""
        rng, started = random.Random(0), time.monotonic()
        parameters = [*self.network.parameters()]
        optimizer = torch.optim.Adam(parameters, self.learning_rate)
        losses: list[float] = []
        while len(losses) < self.steps and time.monotonic() - started < self.seconds:
            loss = self.training_loss(rng.sample(facts, min(self.batch_size, len(facts))))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
        return len(losses), sum(losses[-50:]) / len(losses[-50:])

    def training_loss(self, facts: Sequence[EditExample]) -> Tensor:
        """The loss of an edit of facts: what it misses of their rephrasings, and disturbs of unrelated questions."""
        asked = self._rows([fact.rephrase_prompt for fact in facts], facts)
        prompts, answers = zip(*(fact.unrelated[0] for fact in facts), strict=True)
        unrelated = tokenize_rows(self.tokenizer, prompts, answers)
        with torch.no_grad():
            before, _ = answer_logits(self.lm, unrelated)
        factors = gradient_factors(self.lm, self.layers, self._rows([fact.prompt for fact in facts], facts))
        for index, layer in enumerate(self.layers):
            self.network.learn(index, factors[layer.number])
        with torch.enable_grad():
            with updated(self.layers, self.updates(factors)):
                said = answer_loss(self.lm, asked)
                logits, labels = answer_logits(self.lm, unrelated)
            return self._edit_weight * said + divergence(logits, before, labels)

    def updates(self, factors: dict[int, Factors]) -> dict[int, Tensor]:
        """The change of each layer's map, `[d_llm, d_key]`, for the factors of its gradient."""
        return {layer.number: self.update(index, factors[layer.number]) for index, layer in enumerate(self.layers)}

    def update(self, index: int, factors: Factors) -> Tensor:
        """The change of one layer's map."""
        keys, gradients = self.network(index, factors)
        return -self.network.rates[index] * gradients.T @ keys

    def _rows(self, prompts: Sequence[str], facts: Sequence[EditExample]) -> list[Row]:
        return tokenize_rows(self.tokenizer, prompts, [fact.answer for fact in facts])

    # ------------------------------------------------------------------ editing

    def edit(self, facts: Sequence[EditExample]) -> None:
        if not self.trained:
            raise ValueError(
                f"{type(self).__name__} needs facts to train on before it edits, with rephrasings and unrelated "
                f"questions, got none: give validation rows."
            )
        factors = gradient_factors(self.lm, self.layers, self._rows([fact.prompt for fact in facts], facts))
        self.saved.keep(self.layers)
        with torch.no_grad():
            updates = self.updates(factors)
        for layer in self.layers:
            layer.add(updates[layer.number])

    def undo(self) -> None:
        self.saved.restore()
