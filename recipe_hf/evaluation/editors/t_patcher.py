"""T-Patcher: one neuron of the last MLP for each mistaken token (Huang et al., ICLR 2023, arXiv 2301.09785)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...datasets import EditExample
from ...teacher_forcing import answer_logits, tokenize_rows
from .editor import Editor
from .memory.layers import find_layers, hooked
from .memory.moments import KeyText

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: beta and gamma of the paper: a patch stays this far below firing for other queries, and this far below its own.
_MARGIN = 3.0


class TPatcher(Editor):
    """Adds neurons to the MLP of the last layer, each of which corrects one token of one fact and fires at no other.

    A patch has a key k, a bias b and a value v: it adds ReLU(q k + b) v where the MLP reads q (eq. 3 and 4). For each
    token of a fact's answer that the model does not say, one is trained, those of a fact together, on the likelihood
    of the answer (eq. 5), on firing at its own query q_e (eq. 6), and on not firing at queries q_m of other text and
    of the facts before it, by far and by far less than at its own (eq. 7 and 8):

        exp(-q_e k - b),   exp(q_m k + b + 3),   exp((q_m - q_e) k + 3).

    Published: Adam at 0.01, k started at q_e / |q_e|^2, the weights of these losses (1, 10, 10), margins of 3, 1,000
    queries in the two last. Chosen here: ReLU, whatever the MLP has, so that a patch that does not fire changes
    nothing; 100 steps; and what the base writes, or a file, in place of the training data whose queries are taken.

    Args:
        model: The model.
        text: Whose queries are to be left alone.
        steps: At most so many for each fact.
        learning_rate: Of Adam.
        fire: Weight of the second loss.
        rest: Weight of the third and fourth.
        num_queries: How many queries of `text` are kept.

    Raises:
        ValueError: If the layers of the model cannot be found.
    """

    changes_model = True
    facts_at_once = 1

    def __init__(
        self,
        model: RecipeForCausalLM,
        text: KeyText | None = None,
        steps: int = 100,
        learning_rate: float = 0.01,
        fire: float = 1.0,
        rest: float = 10.0,
        num_queries: int = 1000,
    ) -> None:
        super().__init__(model)
        self.layer = find_layers(self.lm)[-1]
        self.text = text or KeyText(num_tokens=num_queries)
        self.steps = steps
        self.learning_rate = learning_rate
        self.fire = fire
        self.rest = rest
        self.num_queries = num_queries
        self._handles: list[RemovableHandle] = []
        self._others: Tensor | None = None
        self.settings |= {"layer": self.layer.number, "steps": steps, "learning rate": learning_rate}
        self.undo()

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        width = self.lm.config.get_text_config(decoder=True).hidden_size
        device = self.layer.weight().device
        #: Of each patch, `[num_patches, d_llm]`, `[num_patches]` and `[num_patches, d_llm]`.
        self.keys = torch.zeros(0, width, device=device)
        self.biases = torch.zeros(0, device=device)
        self.values = torch.zeros(0, width, device=device)
        self._own = torch.zeros(0, width, device=device)
        self._read = torch.empty(0)

    # ------------------------------------------------------------------ the patched MLP

    def _patch(self) -> None:
        """Puts the patches into the MLP, if they are not there."""
        if not self._handles:
            self._handles = [
                self.layer.up.register_forward_pre_hook(self._read_queries),
                self.layer.down.register_forward_hook(self._add),
            ]

    def _read_queries(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._read = args[0]

    def _add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        fired = (self._read.float() @ self.keys.T + self.biases).relu()
        # OPT reads rows as one long text.
        return output + (fired @ self.values).to(output).view_as(output)

    # ------------------------------------------------------------------ editing

    def edit(self, facts: Sequence[EditExample]) -> None:
        self._patch()
        for fact in facts:
            self._learn(fact)
        self.settings["patches"] = len(self.keys)

    def _learn(self, fact: EditExample) -> None:
        others = torch.cat([self._queries(), self._own])
        rows = tokenize_rows(self.tokenizer, [fact.prompt], [fact.answer])
        with torch.no_grad():
            logits, labels = answer_logits(self.lm, rows)
        mistaken = (logits[0].argmax(-1) != labels[0]).nonzero()[:, 0]
        if not len(mistaken):
            return
        queries = self._read.flatten(0, -2)[-len(labels[0]) :].float()
        own = queries[mistaken]
        new = [own / own.square().sum(-1, keepdim=True), torch.zeros_like(own[:, 0]), torch.zeros_like(own)]
        before = self.keys, self.biases, self.values
        parameters = [tensor.clone().requires_grad_(True) for tensor in new]
        optimizer = torch.optim.Adam(parameters, self.learning_rate)
        key, bias, _ = parameters
        for step in range(self.steps + 1):
            with torch.enable_grad():
                self.keys, self.biases, self.values = (
                    torch.cat(pair) for pair in zip(before, parameters, strict=True)
                )
                logits, labels = answer_logits(self.lm, rows)
                said = F.cross_entropy(logits[0].float(), labels[0])
                fires = (own * key).sum(-1)
                rests = others @ key.T
                loss = said + self.fire * (-fires - bias).exp().mean()
                loss = loss + self.rest * _top((rests + bias + _MARGIN).exp())
                loss = loss + self.rest * _top((rests - fires + _MARGIN).exp())
            self.settings["last loss"] = round(loss.item(), 4)
            if step == self.steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.keys, self.biases, self.values = self.keys.detach(), self.biases.detach(), self.values.detach()
        self._own = torch.cat([self._own, queries])

    @torch.no_grad()
    def _queries(self) -> Tensor:
        """Queries of other text, `[n, d_llm]`, read once, before the first edit."""
        if self._others is None:
            found: list[Tensor] = []
            read = self.layer.up.register_forward_pre_hook(
                lambda m, args: found.append(args[0].flatten(0, -2).float())
            )
            with hooked([read]):
                for ids in self.text.windows(self.lm, self.tokenizer):
                    self.lm(input_ids=ids.to(self.keys.device), use_cache=False, logits_to_keep=1)
            self._others = torch.cat(found)[: self.num_queries]
        return self._others


def _top(losses: Tensor, number: int = 1000) -> Tensor:
    """The mean of the largest losses of each patch, `[n, num_patches]` to a number (S of the paper)."""
    return losses.topk(min(number, len(losses)), dim=0).values.mean()
