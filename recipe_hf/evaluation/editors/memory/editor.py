"""What editors that write facts into MLPs share: layers, contexts, second moments, and the way back."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....datasets import EditExample
from ...inputs import digest
from ...records import write_record
from ..editor import Editor
from .layers import Layer, SavedWeights, find_layers
from .moments import KeyText, MomentStore
from .tracing import trace_layer
from .values import ValueSearch, subject_end
from .writing import write_contexts

if TYPE_CHECKING:
    from ....modeling.model import RecipeForCausalLM

#: Facts that are traced where no layer is given: chosen here; ROME has 1,000 that the model knows.
TRACED_FACTS = 16


class MemoryEditor(Editor):
    """An editor that writes to the last maps of MLPs, as memories of keys and values.

    Args:
        model: The model, unedited.
        search: How values are found.
        contexts: Pairs of a length in tokens and how many texts of it are put before a prompt, beside none.
        layer: The layer to write to, or around; by default the one that causal tracing shows, on the facts of `tune`,
            or else on the first that are edited in. Where none of these names its subject, nothing can be traced, and
            it is at a quarter of the depth, where tracing has it in GPT-J, GPT-2 XL and SmolLM2, roughly.
        text: Whose keys are to be disturbed as little as possible.

    Raises:
        ValueError: If the layers of the model cannot be found, or there is no such `layer`.
    """

    changes_model = True

    def __init__(
        self,
        model: RecipeForCausalLM,
        search: ValueSearch,
        contexts: Sequence[tuple[int, int]],
        layer: int | None = None,
        text: KeyText | None = None,
    ) -> None:
        super().__init__(model)
        self.layers = find_layers(self.lm)
        if layer is not None and not 0 <= layer < len(self.layers):
            raise ValueError(f"layer must be between 0 and {len(self.layers) - 1}, got {layer}.")
        self.layer = layer
        self.search = search
        self.moments = MomentStore(self.lm, self.tokenizer, self.layers, text or KeyText())
        self.saved = SavedWeights()
        self._lengths = contexts
        self._contexts: list[str] | None = None
        self.settings |= {"layer": layer, "keys of": self.moments.text.source(), "lookups at the last token": 0}

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        self.prepare(asked)

    @abstractmethod
    def written(self) -> list[Layer]:
        """The layers that facts may be written to, from the lowest, `layer` being known."""

    def prepare(self, facts: Sequence[EditExample]) -> list[Layer]:
        """Does once what needs the unedited base: traces the layer, writes contexts, counts keys.

        Args:
            facts: What to trace, if no layer was given.

        Returns:
            The layers that facts may be written to.
        """
        if self.layer is None:
            traced = [fact for fact in facts if subject_end(fact) is not None][:TRACED_FACTS]
            self.layer, effects = self._trace(traced) if traced else (len(self.layers) // 4, None)
            self.settings |= {"layer": self.layer, "facts traced": len(traced), "indirect effects": effects}
        layers = self.written()
        self.settings["contexts"] = len(self.contexts)
        self.moments.get([layer.number for layer in layers])
        return layers

    def _trace(self, facts: Sequence[EditExample]) -> tuple[int, list[float]]:
        """The layer and the effects that tracing shows, which are kept beside the second moments."""
        mark = digest([self.moments.base, *(f"{fact.prompt}\n{fact.subject}" for fact in facts)])
        path = self.moments.text.directory / f"{mark}-traced.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, {"traced": trace_layer(self.lm, self.tokenizer, self.layers, facts)})
        number, effects = json.loads(path.read_text(encoding="utf-8"))["traced"]
        return number, effects

    @property
    def contexts(self) -> list[str]:
        """Texts before prompts, the first of them empty. The base writes them before the first edit."""
        if self._contexts is None:
            self._contexts = write_contexts(self.lm, self.tokenizer, self._lengths)
        return self._contexts

    def begin(self, facts: Sequence[EditExample]) -> list[Layer]:
        """Prepares to write facts, and counts those that name no subject."""
        layers = self.prepare(facts)
        self.settings["lookups at the last token"] += sum(subject_end(fact) is None for fact in facts)
        return layers

    def undo(self) -> None:
        self.saved.restore()
