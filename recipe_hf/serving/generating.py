"""The engine of one process: prompts that wait are taken into one batch of transformers' `generate`."""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from .engine import Closed, Deliver, Full, Prompt
from .metrics import Metrics
from .rows import Row, RowsCriteria, RowsProcessor

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

logger = logging.getLogger(__name__)

# A batch that has room is joined once it has run for so many times as long as it takes to read its rows anew, less if
# many wait for few: that so takes about a tenth of the time at most.
_AGAIN = 10


class TransformersEngine:
    """An [`Engine`][recipe_hf.serving.engine.Engine] over a model in this process, in one thread.

    Rows of a batch are looked up, chosen, stopped and cancelled apart. What comes while a batch runs joins it when
    there is room: `generate` is ended, and begun again with the answers so far.

    Args:
        model: The model.
        max_batch_size: Most rows at a time.
        max_waiting: Most rows that wait.
        batch_wait: How many seconds to wait for one more row before a batch is begun that has room.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        max_batch_size: int = 16,
        max_waiting: int = 128,
        batch_wait: float = 0.005,
    ) -> None:
        if model.tokenizer is None:
            raise ValueError("model must have a tokenizer, got one without.")
        self._model = model
        self._tokenizer = model.tokenizer
        self._tokenizer("", padding=False, truncation=False)  # From now on threads may share it.
        self._max_batch_size, self._max_waiting, self._batch_wait = max_batch_size, max_waiting, batch_wait
        self.metrics = Metrics()
        self._config = _greedy(model.generation_config)
        ends = self._config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        padding = self._config.pad_token_id
        self._padding = next(id for id in (padding, self._tokenizer.pad_token_id, *self._ends, 0) if id is not None)
        self._config.pad_token_id = self._padding
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_batch = 1.0
        self._thread = threading.Thread(target=self._run, name="generating", daemon=True)
        self.metrics.waiting.set_function(lambda: len(self._waiting))
        self._thread.start()

    def submit(self, prompts: Sequence[Prompt], deliver: Deliver) -> Callable[[], None]:
        """See [`Engine`][recipe_hf.serving.engine.Engine]."""
        rows = [Row(prompt, partial(deliver, number)) for number, prompt in enumerate(prompts)]
        with self._changed:
            if self._closed:
                raise Closed("The server is being stopped.")
            waiting = len(self._waiting)
            if waiting + len(rows) > self._max_waiting:
                batches = math.ceil((waiting + 1) / self._max_batch_size)
                raise Full(waiting, max(1, math.ceil(batches * self._seconds_per_batch)))
            self._waiting.extend(rows)
            self._changed.notify()
        return partial(self._cancel, rows)

    def _cancel(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.cancelled = True
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)

    def is_ready(self) -> bool:
        """See [`Engine`][recipe_hf.serving.engine.Engine]."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """See [`Engine`][recipe_hf.serving.engine.Engine]."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        rows: list[Row] = []
        while rows := self._next_batch(rows):
            started = time.perf_counter()
            try:
                self._generate(rows)
            except Exception:  # Whatever failed, those who wait are told, and the thread serves the next.
                logger.exception("A batch failed.")
                for row in rows:
                    row.fail()
            rows = [row for row in rows if not row.finished]
            self._seconds_per_batch += (time.perf_counter() - started - self._seconds_per_batch) / 4

    def _next_batch(self, running: list[Row]) -> list[Row]:
        """The rows to continue next, once there are any: those that run, and as many new ones as there is room for.

        None when the engine is closed and all have ended.
        """
        with self._changed:
            if not running:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                while not self._closed and len(self._waiting) < self._max_batch_size:
                    if not self._changed.wait(self._batch_wait):
                        break
            size = min(self._max_batch_size - len(running), len(self._waiting))
            return [*running, *(self._waiting.popleft() for _ in range(size))]

    def _generate(self, rows: Sequence[Row]) -> None:
        self._begin([row for row in rows if not row.has_begun])
        num_read, started, first = sum(row.num_tokens for row in rows), time.perf_counter(), 0.0

        def joined() -> bool:
            """Whether to end the batch here, and go on with those that wait beside those that run."""
            nonlocal first
            passed = time.perf_counter() - started
            first = first or passed
            running = [row for row in rows if not row.finished]
            joining = min(len(self._waiting), self._max_batch_size - len(running))
            if not joining or not running:
                return False
            to_read_again = first * sum(row.num_tokens for row in running) / num_read
            return passed > _AGAIN * to_read_again * len(running) / (len(running) + joining)

        batch = self._padded([row.ids for row in rows])
        retrievals, facts = self._model.facts_before(
            [row.retrieval for row in rows], torch.stack([row.keys for row in rows]), **batch
        )
        for row, retrieval in zip(rows, retrievals, strict=True):
            row.retrieval = retrieval
        config = copy.deepcopy(self._config)
        config.max_new_tokens = max(row.num_left for row in rows)
        processor = RowsProcessor(rows)
        self.metrics.batch_size.observe(len(rows))
        with facts, self.metrics.generation_seconds.time():
            self._model.lm.generate(
                **batch,
                generation_config=config,
                logits_processor=LogitsProcessorList([processor]),
                stopping_criteria=StoppingCriteriaList([RowsCriteria(rows, processor, joined)]),
            )

    def _begin(self, rows: Sequence[Row]) -> None:
        """Looks new rows up."""
        if not rows:
            return
        prompts = [row.prompt for row in rows]
        with self.metrics.retrieval_seconds.time():
            retrievals, keys = self._model.look_up(
                [prompt.query for prompt in prompts],
                [prompt.where for prompt in prompts],
                [prompt.namespace for prompt in prompts],
            )
        for row, retrieval, found in zip(rows, retrievals, keys, strict=True):
            row.begin(retrieval, found, self._tokenizer, self._ends, self._model.device)
            if row.prompt.query:
                self.metrics.gate.labels(fired=str(retrieval.fired).lower()).inc()

    def _padded(self, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Token ids as `generate` takes them."""
        length = max(map(len, texts))
        ids = torch.full((len(texts), length), self._padding)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, length - len(text) :], mask[row, length - len(text) :] = torch.tensor(text), 1
        return {"input_ids": ids.to(self._model.device), "attention_mask": mask.to(self._model.device)}


def _greedy(config: GenerationConfig) -> GenerationConfig:
    """The base's own settings, but for those that the rows have apart."""
    config = copy.deepcopy(config)
    apart: dict[str, Any] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "max_length": None}
    unset = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p", "stop_strings", "max_new_tokens"))
    config.update(**apart, **unset, return_dict_in_generate=False)
    return config
