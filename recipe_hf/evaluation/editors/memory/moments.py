"""Second moments of keys, C = E[k k^T]: what a layer's memory holds already, kept in files by base and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....modeling.frozen_base import fingerprint, input_device
from ...inputs import describe_file, digest
from ..kept import keep
from .layers import Layer, hooked
from .writing import write_texts

_SAMPLED_WEIGHTS = 64
#: A share of the mean of the diagonal of C.
_RIDGE = 1e-4
_WINDOW = 128
_BATCH_SIZE = 16
#: Of a file, so many are read for each token that is wanted.
_CHARACTERS = 16


@dataclass(frozen=True)
class KeyText:
    """The text whose keys are taken.

    ROME and MEMIT take 100,000 documents of Wikipedia. By default the base writes its own here, as nothing else is
    sure to be at hand; where there is a file of running text, it is the better choice.

    Args:
        file: A text file; by default the base writes.
        num_tokens: How many tokens are counted at most. Fewer than some times the width of a key leave directions
            that no key has.
        seed: Seed of what the base writes.
        directory: Where second moments are kept; by default beside the Hub's cache.

    Raises:
        FileNotFoundError: If `file` does not exist.
        ValueError: If `num_tokens` is not above 0.
    """

    file: Path | None = None
    num_tokens: int = 16384
    seed: int = 0
    directory: Path = field(default_factory=lambda: Path(constants.HF_HOME) / "recipe-hf" / "key-moments")

    def __post_init__(self) -> None:
        if self.num_tokens <= 0:
            raise ValueError(f"num_tokens must be above 0, got {self.num_tokens}.")
        if self.file is not None and not self.file.is_file():
            raise FileNotFoundError(f"file must be a text file that exists, got {str(self.file)!r}.")

    def source(self) -> str:
        """What the keys are of, in words that tell one text from another."""
        where = f"written by the base, seed {self.seed}" if self.file is None else describe_file(self.file)
        return f"{self.num_tokens} tokens of {where}"

    def windows(self, lm: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
        """Batches of token ids `[n, length]` without padding, `num_tokens` in all where there are as many.

        Raises:
            ValueError: If the file has no text.
        """
        if self.file is None:
            for start in range(0, self.num_tokens, _BATCH_SIZE * _WINDOW):
                number = min(_BATCH_SIZE, -(-(self.num_tokens - start) // _WINDOW))
                texts = write_texts(lm, tokenizer, number, _WINDOW - 1, self.seed + start, top_k=0, temperature=1.0)
                yield from map(torch.tensor, _of_one_length(texts))
            return
        with self.file.open(encoding="utf-8") as file:
            ids = tokenizer(file.read(_CHARACTERS * self.num_tokens))["input_ids"][: self.num_tokens]
        if not ids:
            raise ValueError(f"file must have text, got the empty {str(self.file)!r}.")
        windows = [ids[start : start + _WINDOW] for start in range(0, len(ids), _WINDOW)]
        for batch in _of_one_length(windows):
            for start in range(0, len(batch), _BATCH_SIZE):
                yield torch.tensor(batch[start : start + _BATCH_SIZE])


def _of_one_length(texts: Sequence[list[int]]) -> list[list[list[int]]]:
    return [[text for text in texts if len(text) == length] for length in sorted({len(text) for text in texts})]


@dataclass(frozen=True)
class Moments:
    """The second moment of the keys of one layer.

    Args:
        second: E[k k^T], `[d_key, d_key]`, float32, on the CPU.
        count: Over how many keys it is the mean.
        source: Of what text.
    """

    second: Tensor
    count: int
    source: str

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 keys, for keys `[d_key, n]` on any device, in their precision."""
        return torch.cholesky_solve(keys.cpu().double(), self._factor).to(keys)

    def regularized(self) -> Tensor:
        """C with a ridge, so that it has an inverse where the text has few tokens: chosen here.

        What ROME and MEMIT derive holds for any C that has one.
        """
        second = self.second.double()
        return second + _RIDGE * second.diagonal().mean() * torch.eye(len(second))

    @cached_property
    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.regularized())


class MomentStore:
    """Second moments of one base, counted when they are first asked for and kept in files that editors share.

    Make it while the base is unedited.

    Args:
        lm: The base.
        tokenizer: Its tokenizer.
        layers: Its layers.
        text: Whose keys to count.
    """

    def __init__(
        self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: Sequence[Layer], text: KeyText
    ) -> None:
        self.lm = lm
        self.tokenizer = tokenizer
        self.layers = layers
        self.text = text
        self.base = base_mark(lm, layers)
        self._held: dict[int, Moments] = {}

    def path(self, number: int) -> Path:
        """The file of a layer."""
        return self.text.directory / f"{digest([self.base, self.text.source()])}-layer-{number}.safetensors"

    def get(self, numbers: Sequence[int]) -> list[Moments]:
        """Second moments of layers. Those that nobody counted yet are counted in one pass over the text.

        Raises:
            ValueError: If a file is damaged or of another base.
        """
        missing = [number for number in numbers if number not in self._held and not self._read(number)]
        if missing:
            self._held |= self._count(missing)
            for number in missing:
                self._write(number)
        return [self._held[number] for number in numbers]

    def _read(self, number: int) -> bool:
        path = self.path(number)
        if path.is_file():
            self._held[number] = load_moments(path, self.base, number)
        return path.is_file()

    def _write(self, number: int) -> None:
        path, moments = self.path(number), self._held[number]
        facts = {"base": self.base, "layer": str(number), "count": str(moments.count), "source": moments.source}
        keep(path, {"second_moment": moments.second.contiguous().cpu()}, facts)

    @torch.no_grad()
    def _count(self, numbers: Sequence[int]) -> dict[int, Moments]:
        sums: dict[int, Tensor] = {}
        count = 0

        def add(number: int, key: Tensor) -> None:
            keys = key.flatten(0, -2).float()
            sums[number] = sums.get(number, 0) + keys.T @ keys

        def hook(number: int) -> Any:
            return self.layers[number].down.register_forward_pre_hook(lambda module, args: add(number, args[0]))

        for ids in self.text.windows(self.lm, self.tokenizer):
            with hooked([hook(number) for number in numbers]):
                self.lm(input_ids=ids.to(input_device(self.lm)), use_cache=False, logits_to_keep=1)
            count += ids.numel()
        return {number: Moments((total / count).cpu(), count, self.text.source()) for number, total in sums.items()}


def base_mark(lm: PreTrainedModel, layers: Sequence[Layer]) -> str:
    """Tells an unedited base from others: by its input embeddings and by some weights of each layer."""
    samples = [layer.weight().flatten()[:: 1 + layer.weight().numel() // _SAMPLED_WEIGHTS] for layer in layers]
    return digest([json.dumps(fingerprint(lm)), *(json.dumps(sample.float().tolist()) for sample in samples)])


def load_moments(path: Path, base: str, number: int) -> Moments:
    """Reads the second moments of a layer.

    Args:
        path: The file.
        base: The mark of the base that they must be of.
        number: The layer that they must be of.

    Raises:
        ValueError: If they are of another base or layer, or the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts, second = file.metadata(), file.get_tensor("second_moment")
            moments = Moments(second, int(facts["count"]), facts["source"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold second moments of keys, and does not ({error}): delete it.") from error
    for what, expected in (("base", base), ("layer", str(number))):
        if facts.get(what) != expected:
            raise ValueError(
                f"Second moments must be of {what} {expected}, got those of {what} {facts.get(what)} in {path}."
            )
    return moments
