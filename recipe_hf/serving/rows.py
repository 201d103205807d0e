"""The rows of one batch: each chooses its tokens, says its text and ends by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..modeling.outputs import Retrieval
from .engine import Failed, FinishReason, Piece, Prompt, Sampling, TokenLogprobs
from .text import Decoder, StopStrings

# Below it, logits are divided into what is no number; the most likely token is all but certain there.
_GREEDY_BELOW = 1e-5


class Row:
    """A prompt while it waits and is continued."""

    def __init__(self, prompt: Prompt, deliver: Callable[[Piece | Failed], None]) -> None:
        self.prompt = prompt
        self.deliver = deliver
        self.cancelled = False
        self.finished = False
        self.has_begun = False
        self._tokens: list[int] = []

    @property
    def ids(self) -> list[int]:
        """The tokens of the prompt and of the answer so far."""
        return [*self.prompt.ids, *self._tokens]

    @property
    def num_tokens(self) -> int:
        """How many they are."""
        return len(self.prompt.ids) + len(self._tokens)

    @property
    def num_left(self) -> int:
        """How many more tokens the answer may have."""
        return self.prompt.sampling.max_tokens - len(self._tokens)

    def begin(
        self,
        retrieval: Retrieval,
        keys: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        device: torch.device,
    ) -> None:
        """Makes ready for the first token.

        Args:
            retrieval: What was looked up.
            keys: Of the facts that were found.
            tokenizer: The base's.
            ends: The tokens that end an answer.
            device: Where logits are.
        """
        sampling = self.prompt.sampling
        self.has_begun = True
        self.retrieval, self.keys = retrieval, keys
        self._decoder, self._stop = Decoder(tokenizer), StopStrings(sampling.stop)
        self._ends = frozenset(ends)
        self._choice = Choice(sampling, device)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits `[vocab]`, the choice the greatest, and log probabilities `[vocab]`, if asked for."""
        wants = self.prompt.sampling.logprobs is not None
        return self._choice(logits, self._tokens), logits.log_softmax(-1) if wants else None

    def take(self, token: int, logprobs: Tensor | None) -> bool:
        """Takes the next token, hands on what can be shown, and says whether the row has ended."""
        if self.finished:
            return True
        if self.cancelled:  # Nobody listens.
            self.finished = True
            return True
        self._tokens.append(token)
        known = () if logprobs is None else (_logprobs(logprobs, token, self.prompt.sampling.logprobs or 0),)
        if token in self._ends:
            self._end(self._stop.add(self._decoder.end()) + self._stop.end(), "stop", ())
            return True
        text = self._stop.add(self._decoder.add(token))
        if self._stop.found:
            self._end(text, "stop", known)
        elif len(self._tokens) >= self.prompt.sampling.max_tokens:
            text += self._stop.add(self._decoder.end())
            self._end(text + self._stop.end(), "stop" if self._stop.found else "length", known)
        elif text or known:
            self.deliver(self._piece(text, known))
        return self.finished

    def fail(self) -> None:
        """Ends a row that cannot be continued."""
        if not self.finished:
            self.finished = True
            self.deliver(Failed("The answer could not be generated; the server's log says why."))

    def _end(self, text: str, reason: FinishReason, logprobs: tuple[TokenLogprobs, ...]) -> None:
        self.finished = True
        self.deliver(self._piece(text, logprobs, reason))

    def _piece(self, text: str, logprobs: tuple[TokenLogprobs, ...], reason: FinishReason | None = None) -> Piece:
        return Piece(text, len(self._tokens), self.retrieval, logprobs, reason)


class Choice:
    """How a row chooses its next token: greedily, or by chance under what was asked for."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._is_greedy = sampling.temperature < _GREEDY_BELOW
        self._warpers: list[Any] = []
        self._bias: tuple[Tensor, Tensor] | None = None
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias.items(), strict=True)
            self._bias = torch.tensor(ids, device=device), torch.tensor(values, device=device, dtype=torch.float32)
        if not self._is_greedy:
            self._chance = torch.Generator(device)
            if sampling.seed is None:
                self._chance.seed()
            else:
                self._chance.manual_seed(sampling.seed % 2**63)
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: Tensor, so_far: Sequence[int]) -> Tensor:
        sampling = self._sampling
        penalized = bool(so_far) and (sampling.presence_penalty or sampling.frequency_penalty)
        if self._bias is not None or penalized:
            logits = logits.clone()
        if self._bias is not None:
            logits[self._bias[0]] += self._bias[1]
        if penalized:
            ids, counts = torch.tensor(so_far, device=logits.device).unique(return_counts=True)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if self._is_greedy:
            return logits
        scores = (logits / sampling.temperature).unsqueeze(0)
        for warper in self._warpers:
            scores = warper(None, scores)
        chosen = torch.multinomial(scores.softmax(-1)[0], 1, generator=self._chance)
        return torch.full_like(logits, -torch.inf).index_fill_(0, chosen, 0.0)


class RowsProcessor(LogitsProcessor):
    """Lets each row of a batch choose, where `generate` takes the greatest logit."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.logprobs: list[Tensor | None] = [None] * len(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        for number, row in enumerate(self._rows):
            if not row.finished:
                scores[number], self.logprobs[number] = row.choose(scores[number])
        return scores


class RowsCriteria(StoppingCriteria):
    """Hands each row its token, and ends it when it has ended, or all when `interrupts` says so."""

    def __init__(self, rows: Sequence[Row], processor: RowsProcessor, interrupts: Callable[[], bool]) -> None:
        self._rows, self._processor, self._interrupts = rows, processor, interrupts

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        tokens = input_ids[:, -1].tolist()
        taken = zip(self._rows, tokens, self._processor.logprobs, strict=True)
        ended = torch.tensor([row.take(*token) for row, *token in taken], device=input_ids.device)
        return torch.ones_like(ended) if self._interrupts() else ended


def _logprobs(logprobs: Tensor, token: int, num_top: int) -> TokenLogprobs:
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, logprobs[token].item(), top)
