"""R-ROME: ROME's edits as patches that a memory of facts hands out (RASE, Han et al., Findings of EMNLP 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...datasets import EditExample
from ...teacher_forcing import Row
from .editor import Found, Prompt, Reading
from .memory.layers import by_row, hooked
from .memory.moments import KeyText
from .memory.values import ValueSearch
from .rome import CONTEXTS, Rome

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


@dataclass(frozen=True)
class SimilarityGate:
    """Whether the fact that is nearest to a query is meant by it, by the similarities of the nearest few.

    It is if the best is above `certain`; or if it leads the second by more than `lead` and the few are spread by more
    than `spread`, their standard deviation. All as in the authors' code.

    Args:
        certain: Similarity.
        lead: Difference of two similarities.
        spread: Standard deviation of similarities.
        few: How many are looked at.
    """

    certain: float = 0.9
    lead: float = 0.15
    spread: float = 0.05
    few: int = 6

    def accepts(self, similarities: Tensor) -> bool:
        """Whether the best of a query's `similarities` `[num_facts]` is accepted."""
        best = similarities.topk(min(self.few, len(similarities))).values.double()
        if best[0] > self.certain:
            return True
        return len(best) > 1 and bool(best[0] - best[1] > self.lead and best.std(correction=0) > self.spread)


class RRome(Rome):
    """Keeps ROME's change for each fact apart, and makes it only for prompts that the memory takes for its own.

    Each change is made from the unedited base, so that facts do not disturb one another, and a prompt that finds none
    is answered by the base. With L and u of ROME's eq. 2, a row whose fact is found has L (u^T k) added to what the
    MLP gives for each of its keys k, which is the edited map's output to rounding. (Not to be confused with r-ROME,
    a later correction of ROME's code.)

    RASE trains its encoder on pairs of facts and questions; here a sentence-transformers model takes its place as it
    comes, and the memory's keys are the prompts that facts were told with.

    Args:
        model: The model.
        encode: From texts to vectors of norm 1, `[n, dim]`.
        gate: When a patch is applied.
        layer: The layer to write to; by default the one that causal tracing shows.
        text: Whose keys are to be disturbed as little as possible.
        search: How values are found.
        contexts: Pairs of a length in tokens and how many texts of it.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        encode: Callable[[list[str]], Tensor],
        gate: SimilarityGate = SimilarityGate(),  # noqa: B008
        layer: int | None = None,
        text: KeyText | None = None,
        search: ValueSearch = ValueSearch(),  # noqa: B008
        contexts: Sequence[tuple[int, int]] = CONTEXTS,
    ) -> None:
        super().__init__(model, layer, text, search, contexts)
        self.encode = encode
        self.gate = gate
        self._keys = torch.empty(0)
        self.settings |= {"gate": vars(gate)}
        self.undo()

    def edit(self, facts: Sequence[EditExample]) -> None:
        (layer,) = self.begin(facts)
        for fact in facts:
            left, right = self.rank_one(layer, fact)
            self._left.append(left)
            self._right.append(right)
        keys = self.encode([fact.prompt for fact in facts]).float().cpu()
        self._keys = torch.cat([self._keys, keys]) if len(self._keys) else keys

    def undo(self) -> None:
        super().undo()
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        self._keys = torch.empty(0)
        self._used: dict[tuple[int, ...], int | None] = {}

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        if not len(self._keys):
            return super().read(prompts)
        similarities = self.encode([prompt.query for prompt in prompts]).float().cpu() @ self._keys.T
        readings = []
        for prompt, row in zip(prompts, similarities, strict=True):
            # Of facts that were told with the same prompt, the last.
            nearest = len(row) - 1 - int(row.flip(0).argmax())
            used = nearest if self.gate.accepts(row) else None
            self._used[tuple(prompt.ids)] = used
            found = Found(used, nearest, row[nearest].item(), self.gate.certain)
            readings.append(Reading(prompt.ids, found=found))
        return readings

    @contextmanager
    def answering(self, rows: Sequence[Row]) -> Iterator[None]:
        used = [self._used.get(tuple(row.prompt_ids)) for row in rows]
        patched = [i for i, position in enumerate(used) if position is not None]
        if not patched:
            yield
            return
        left, right = (
            torch.stack([vectors[position] for position in used if position is not None])
            for vectors in (self._left, self._right)
        )

        def patch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            keys = by_row(args[0], len(rows))[patched].float()
            change = torch.einsum("bte,be->bt", keys, right)[..., None] * left[:, None]
            values = by_row(output, len(rows))
            values = values.index_add(0, torch.tensor(patched, device=output.device), change.to(output))
            return values.view_as(output)

        with hooked([self.written()[0].down.register_forward_hook(patch)]):
            yield
