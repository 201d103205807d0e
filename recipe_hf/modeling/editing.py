"""Adding, removing and looking up knowledge, with keys that follow the weights."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .facts import parse_facts
from .knowledge import KnowledgeBase, OnConflict
from .knowledge.exchange import read_facts
from .outputs import Retrieval
from .prompt_encoder import PromptEncoder
from .retriever import Retriever

logger = logging.getLogger(__name__)


class KnowledgeMixin:
    """The part of [`RecipeForCausalLM`] that holds facts: they need the retriever, not the base."""

    config: Any
    retriever: Retriever
    prompt_encoder: PromptEncoder
    _knowledge: KnowledgeBase
    # Versions and fingerprint of the weights when last looked at, and the sentinel's key.
    _current: tuple[tuple[Any, ...], str, Tensor] | None = None

    @property
    def knowledge(self) -> KnowledgeBase:
        """The facts. Assign another knowledge base to swap them; its keys are made anew if other weights made them."""
        return self._knowledge

    @knowledge.setter
    def knowledge(self, knowledge: KnowledgeBase) -> None:
        if not isinstance(knowledge, KnowledgeBase) or knowledge.dim != self.config.knowledge_dim:
            got = f"one of width {knowledge.dim}" if isinstance(knowledge, KnowledgeBase) else type(knowledge).__name__
            raise ValueError(f"knowledge must be a KnowledgeBase of width {self.config.knowledge_dim}, got {got}.")
        self._knowledge = knowledge

    def open_knowledge(
        self, path: str | os.PathLike[str], *, read_only: bool = False, namespace: str = ""
    ) -> KnowledgeBase:
        """Takes the facts from a file from now on, made if it is not there, and keeps every change in it.

        The facts that the model had are let go: `model.knowledge.copy_to(path)` would take them along.

        Args:
            path: The file, as in [`KnowledgeBase.open`].
            read_only: Whether to leave writing to another process.
            namespace: Which namespace of it.

        Returns:
            The knowledge base, which is `model.knowledge` too.

        Raises:
            BlockingIOError: If it is open for writing already; the message says where.
            OSError: If the file cannot be read or written.
            ValueError: If the file is damaged, or its keys are of another width.
        """
        self.knowledge = KnowledgeBase.open(path, self.config.knowledge_dim, read_only=read_only, namespace=namespace)
        return self.knowledge

    @torch.inference_mode(False)
    def add_knowledge(
        self,
        facts: Iterable[Any],
        on_conflict: OnConflict = "replace",
        truncation: bool = False,
        batch_size: int = 64,
    ) -> list[int]:
        """Adds facts, all or none. Weights do not change: an edit is one encoder pass.

        Args:
            facts: A list of statements, `(prompt, answer)` pairs, or dicts with `statement`, or `prompt` and `answer`,
                and optionally `metadata` (see [`~recipe_hf.modeling.facts.parse_facts`]).
            on_conflict: What to do with a fact whose prompt is there already: `"replace"` it, `"keep"` it, or
                `"error"`.
            truncation: Whether a statement longer than the encoder takes is cut rather than refused.
            batch_size: How many statements to encode at once.

        Returns:
            The id of each fact.

        Raises:
            ValueError: If an item is not a fact, is too long, or is there already under `on_conflict="error"`.
        """
        if on_conflict not in ("replace", "keep", "error"):
            raise ValueError(f"on_conflict must be 'replace', 'keep' or 'error', got {on_conflict!r}.")
        parsed = parse_facts(facts)
        statements = [fact.statement for fact in parsed]
        if not truncation:
            self._check_lengths(statements)
        fingerprint, _ = self._refresh()
        keys = self.encode_statements(statements, batch_size)
        return self.knowledge.add(parsed, keys, on_conflict, encoder_fingerprint=fingerprint)

    def import_knowledge(
        self, path: str | os.PathLike[str], on_conflict: OnConflict = "replace", **kwargs: Any
    ) -> list[int]:
        """Adds the facts of a file, all or none: JSON lines, or Parquet with `recipe-hf[parquet]`.

        Args:
            path: What `knowledge.export` writes, or what
                [`read_facts`][recipe_hf.modeling.knowledge.exchange.read_facts] describes.
            on_conflict: As in `add_knowledge`.
            **kwargs: Further arguments of `add_knowledge`.

        Returns:
            The id of each fact; ids in the file do not count.

        Raises:
            ImportError: If it is a Parquet file, and pyarrow is not installed.
            ValueError: If the file is not as described, or a fact is refused.
        """
        return self.add_knowledge(read_facts(path), on_conflict, **kwargs)

    def remove_knowledge(self, ids: int | Iterable[int]) -> None:
        """Removes facts, all or none; they stay in the readable history.

        Raises:
            KeyError: If an id is not that of a fact.
        """
        self.knowledge.remove(ids)

    def retrieve(self, queries: str | Sequence[str], batch_size: int = 64) -> list[Retrieval]:
        """Looks queries up: for each the closest fact, and whether it is closer than the sentinel (eq. 8 and 9).

        Args:
            queries: The texts to look up. An empty one finds nothing.
            batch_size: How many to encode at once.

        Raises:
            ValueError: If `queries` are not strings.
        """
        return self._look_up(check_queries(queries), batch_size)[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _look_up(self, queries: list[str], batch_size: int = 64) -> tuple[list[Retrieval], Tensor, list[str | None]]:
        """Retrievals; the key `[len(queries), knowledge_dim]` and the answer, if known, of each query's best fact."""
        retrievals = [Retrieval(None, None, -torch.inf, 0.0, False) for _ in queries]
        keys = torch.zeros(len(queries), self.config.knowledge_dim)
        answers: list[str | None] = [None for _ in queries]
        asked = [row for row, query in enumerate(queries) if query.strip()]
        if not asked:
            return retrievals, keys, answers
        _, sentinel = self._refresh()
        with deterministic(self.retriever):
            encoded = self.retriever.encode_queries([queries[row] for row in asked], batch_size).float()
            scale = self.config.scale
            thresholds = (encoded @ sentinel * scale).tolist()
        hits = self.knowledge.lookup(encoded)
        scores = (hits.scores[:, 0] * scale).tolist()
        for row, (fact,), score, threshold in zip(asked, hits.facts, scores, thresholds, strict=True):
            if fact is None:
                retrievals[row] = Retrieval(None, None, score, threshold, False)
            else:
                retrievals[row] = Retrieval(fact.id, fact.statement, score, threshold, score > threshold)
                answers[row] = fact.answer
        keys[asked] = hits.keys[:, 0]
        return retrievals, keys, answers

    @torch.inference_mode(False)
    def encode_statements(self, statements: Sequence[str], batch_size: int = 64) -> Tensor:
        """Keys `[len(statements), knowledge_dim]` of statements (eq. 6), by the present weights, in float32."""
        with torch.no_grad(), deterministic(self.retriever):
            return self.retriever.encode_statements(statements, batch_size).float()

    def _check_lengths(self, statements: Sequence[str]) -> None:
        if self.retriever.tokenizer is None:
            raise RuntimeError("The retriever has no tokenizer: load the model with from_pretrained.")
        for position, ids in enumerate(self.retriever.tokenizer(list(statements), verbose=False)["input_ids"]):
            if len(ids) > self.retriever.max_length:
                raise ValueError(
                    f"facts[{position}] must be at most the encoder's {self.retriever.max_length} tokens, got "
                    f"{len(ids)} in {statements[position][:60]!r}...; truncation=True would cut it."
                )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self) -> tuple[str, Tensor]:
        """Brings the stored keys in step with the weights; gives the fingerprint of these and the sentinel's key.

        Versions of the weights say whether anything was written; only then a hash says whether it changed the keys.
        """
        versions = weight_versions(self.retriever)
        if self._current is None or self._current[0] != versions:
            found = key_fingerprint(self.retriever)
            with deterministic(self.retriever):
                self._current = versions, found, self.retriever.encode_sentinel().float()
        _, found, sentinel = self._current
        while len(self.knowledge) and self.knowledge.encoder_fingerprint != found:
            facts = list(self.knowledge)
            logger.info(f"The weights changed: encoding the statements of {len(facts)} facts again.")
            ids = [fact.id for fact in facts]
            keys = self.encode_statements([fact.statement for fact in facts])
            try:
                self.knowledge.replace_keys(keys, found, ids)
            except ValueError:
                if ids == [fact.id for fact in self.knowledge]:
                    raise
        return found, sentinel


def check_queries(queries: str | Sequence[str], batch: int | None = None) -> list[str]:
    """Checks `queries`: one string, or as many as the batch has rows.

    Raises:
        ValueError: If they are not strings, or not `batch` many.
    """
    texts = [queries] if isinstance(queries, str) else list(queries)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"queries must be strings, got {type(text).__name__} as queries[{position}].")
    if batch is not None and len(texts) != batch:
        raise ValueError(f"queries must be as many as the rows of the batch, {batch}, got {len(texts)}.")
    return texts


@contextmanager
def deterministic(module: nn.Module) -> Iterator[None]:
    """Runs `module` without dropout and in its own precision, also in the midst of training."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        device = next(module.parameters()).device.type
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for part in training:
            part.training = True


def weight_versions(retriever: Retriever) -> tuple[Any, ...]:
    """Changes whenever a tensor of the retriever is written to or replaced, save through `.data`."""
    tensors = [*retriever.parameters(), *retriever.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def key_fingerprint(retriever: Retriever) -> str:
    """SHA-256 of the weights that make keys, rounded to float16: a 16-bit copy of the weights keeps its keys."""
    digest = hashlib.sha256()
    for name, tensor in sorted(retriever.state_dict().items()):
        if not name.startswith(("mlp_q.", "sentinel_embeds")):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
