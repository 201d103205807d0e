"""The editors that `recipe-hf compare` and `recipe-hf ablate` know by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import existing_file
from .alphaedit import AlphaEdit
from .editor import Editor, Unedited
from .finders import Finder, SentinelFinder, describe_sentence_transformer, sentence_transformer, without_sentinel
from .finetuning import Budget, FineTuning, LoRA, peft_version
from .grace import Grace
from .lte import Lte
from .malmen import Malmen
from .memit import Memit
from .memory.moments import KeyText
from .mend import Mend
from .r_rome import RRome
from .retrieval import ByStatementPrompts, ByWordEmbeddings, InContext, RetrievalEditor, Teller, recipe
from .rome import Rome
from .t_patcher import TPatcher
from .wilke import Wilke
from .wise import Wise

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


@dataclass(frozen=True)
class EditorOptions:
    """What editors are made with.

    Args:
        budget: How long those that train may do so, for each edit of all facts.
        sentence_model: The sentence-transformers model of `context-minilm`, `r-rome` and `lte`, on the Hub or in a
            directory.
        learning_rate: Of full fine-tuning.
        lora_learning_rate: Of LoRA, and of the adapter of `lte`.
        key_text: A text file whose keys those that write into MLPs disturb as little as they can; by default the base
            writes the text.
    """

    budget: Budget = Budget()  # noqa: RUF009
    sentence_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    learning_rate: float = 2e-5
    lora_learning_rate: float = 1e-3
    key_text: str | None = None

    def keys(self) -> KeyText:
        """The text whose keys are counted.

        Raises:
            FileNotFoundError: If `key_text` does not exist.
        """
        return KeyText(None if self.key_text is None else existing_file("key_text", Path(self.key_text)))


@dataclass(frozen=True)
class EditorKind:
    """An editor before it is made.

    Args:
        description: What it does, for a reader of its figures.
        make: Makes it.
        trains: Whether it trains something for each fact, so that it takes minutes.
        is_tuned: Whether it has something to choose on rows kept for that.
        inputs: What its figures depend on that no other editor's do, beside the options, as plain values.
    """

    description: str
    make: Callable[[RecipeForCausalLM, EditorOptions], Editor]
    trains: bool = False
    is_tuned: bool = False
    inputs: Callable[[EditorOptions], dict[str, Any]] = lambda options: {}


def _retrieval(
    description: str, finder: Callable[[RecipeForCausalLM, EditorOptions], Finder], teller: type[Teller], **kwargs: Any
) -> EditorKind:
    return EditorKind(description, lambda m, o: RetrievalEditor(m, finder(m, o), teller(m)), **kwargs)


def _writing(description: str, make: Callable[..., Editor], is_tuned: bool = True, **kwargs: Any) -> EditorKind:
    """An editor that writes into MLPs, at a layer that is traced on rows for tuning unless `is_tuned` is False."""
    inputs = kwargs.pop("inputs", lambda o: {})
    return EditorKind(
        description,
        lambda m, o: make(m, o, text=o.keys()),
        trains=True,
        is_tuned=is_tuned,
        inputs=lambda o: {"keys of": o.keys().source()} | inputs(o),
    )


def _sentinel(model: RecipeForCausalLM, options: EditorOptions) -> Finder:
    return SentinelFinder(model)


def _absolute(model: RecipeForCausalLM, options: EditorOptions) -> Finder:
    return without_sentinel(model)


def _nearest(options: EditorOptions) -> Finder:
    return sentence_transformer(options.sentence_model, threshold=-2.0)  # Below every cosine: the nearest is used.


EDITORS: Mapping[str, EditorKind] = {
    "base": EditorKind("the unedited model", lambda m, o: Unedited(m)),
    "recipe": EditorKind("RECIPE, facts told as prompt and answer", lambda m, o: recipe(m)),
    "recipe-statements": EditorKind(
        "RECIPE, facts told as statements, as in the paper", lambda m, o: recipe(m, as_statements=True)
    ),
    "context": _retrieval(
        "the statement as text before the prompt, RECIPE's retriever and gate", _sentinel, InContext
    ),
    "context-minilm": _retrieval(
        "the statement as text before the prompt, a plain sentence-transformers model and a tuned cosine threshold",
        lambda m, o: sentence_transformer(o.sentence_model),
        InContext,
        is_tuned=True,
        inputs=lambda o: describe_sentence_transformer(o.sentence_model),
    ),
    "lora": EditorKind(
        "LoRA on all linear layers, through PEFT",
        lambda m, o: LoRA(m, o.budget, learning_rate=o.lora_learning_rate),
        trains=True,
        inputs=lambda o: peft_version(),
    ),
    "ft": EditorKind("fine-tuning of all weights", lambda m, o: FineTuning(m, o.budget, o.learning_rate), trains=True),
    "grace": EditorKind(
        "GRACE, a codebook of activations at one layer, its radius tuned",
        lambda m, o: Grace(m, o.budget),
        trains=True,
        is_tuned=True,
    ),
    "rome": _writing("ROME, a rank-one change of one MLP", lambda m, o, **k: Rome(m, **k)),
    "wilke": _writing("WilKE, ROME at the layer that fits best", lambda m, o, **k: Wilke(m, **k), is_tuned=False),
    "r-rome": _writing(
        "R-ROME, ROME's changes as patches that a memory of facts hands out (RASE)",
        lambda m, o, **k: RRome(m, sentence_transformer(o.sentence_model).encode_queries, **k),
        inputs=lambda o: describe_sentence_transformer(o.sentence_model),
    ),
    "memit": _writing("MEMIT, all facts spread over five MLPs", lambda m, o, **k: Memit(m, **k)),
    "alphaedit": _writing("AlphaEdit, MEMIT in the null space of other keys", lambda m, o, **k: AlphaEdit(m, **k)),
    "wise": EditorKind("WISE, a side memory and a router at one MLP", lambda m, o: Wise(m), trains=True),
    "t-patcher": _writing(
        "T-Patcher, a neuron of the last MLP for each mistaken token",
        lambda m, o, text: TPatcher(m, replace(text, num_tokens=1000)),
        is_tuned=False,
    ),
    "mend": EditorKind(
        "MEND, a network that makes edits of gradients, trained on the rows for tuning",
        lambda m, o: Mend(m),
        trains=True,
        is_tuned=True,
    ),
    "malmen": EditorKind(
        "MALMEN, MEND's edits of all facts joined by least squares", lambda m, o: Malmen(m), trains=True, is_tuned=True
    ),
    "lte": EditorKind(
        "LTE, the nearest fact as text before the prompt, to a base aligned on the rows for tuning to use it if asked",
        lambda m, o: Lte(m, _nearest(o), o.budget, learning_rate=o.lora_learning_rate),
        is_tuned=True,
        inputs=lambda o: peft_version() | describe_sentence_transformer(o.sentence_model),
    ),
    "no-prompts": _retrieval(
        "without continuous prompts: the statement's word embeddings instead", _sentinel, ByWordEmbeddings
    ),
    "no-sentinel": _retrieval(
        "without the sentinel: one absolute threshold, tuned", _absolute, ByStatementPrompts, is_tuned=True
    ),
    "neither": _retrieval("without both", _absolute, ByWordEmbeddings, is_tuned=True),
}

BASELINES = ("base", "recipe", "recipe-statements", "context", "context-minilm", "lora", "ft", "grace")
ABLATIONS = ("recipe-statements", "no-prompts", "no-sentinel", "neither")
