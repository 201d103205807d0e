"""Configuration of a RECIPE model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

#: What may be prefixed of a fact.
PROMPT_FORMS = ("continuous", "text")
#: Where continuous prompts stand in a text that begins with the token its tokenizer writes before every text.
PROMPT_POSITIONS = ("before_bos", "after_bos")
#: Fields that name the retriever of a checkpoint that has none of its own.
RETRIEVER_NAME = ("retriever_name_or_path", "retriever_revision", "retriever_fingerprint")
#: Fields that are of one base, and of the prompt encoders for it. All others say how facts are found, with any base.
OF_ONE_BASE = {
    *("base_model_name_or_path", "base_model_revision", "base_fingerprint"),
    *("hidden_size", "vocab_size", "max_position_embeddings"),
    *("num_continuous_prompt_tokens", "num_answer_prompt_tokens", "prompt_form", "prompt_position"),
    *RETRIEVER_NAME,
}
# Encoders whose position ids start after the padding id lose that many positions (RoBERTa and its family).
_POSITION_OFFSET_MODEL_TYPES = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}

_import_model: Callable[[], object]  # The package itself gives it.


def model_by(import_model: Callable[[], object]) -> None:
    """Says how to import the model of these configs, which is above this module."""
    global _import_model
    _import_model = import_model


class RecipeConfig(PretrainedConfig):
    """Configuration of [`RecipeForCausalLM`]: the sizes of the trained module and the identity of its frozen base.

    Args:
        encoder_config: Configuration of the text encoder `f_rm`, as an object or a dict with `model_type`.
        base_model_name_or_path: Hub id or directory of the frozen base LLM.
        base_model_revision: Revision of the base the weights were trained against.
        base_fingerprint: Sample of the base's input embeddings, to recognise the base again at load
            (see [`~recipe_hf.modeling.frozen_base.fingerprint`]).
        hidden_size: Width of the base's input embeddings, `d_llm`.
        vocab_size: Vocabulary size of the base.
        max_position_embeddings: Context length of the base.
        knowledge_dim: Width of the representations `r_k` and `r_q` (4096 in the paper). A positive multiple of 8.
        num_continuous_prompt_tokens: Length `l` of a continuous prompt (3 in the paper).
        num_answer_prompt_tokens: Number of further continuous prompt tokens, made of a fact's answer where it
            was given apart from the prompt. This goes beyond the paper; 0 for none.
        prompt_form: What is prefixed of a fact: `"continuous"` prompts (paper eq. 7), which are trained for one base,
            or, beyond the paper, its statement as hidden `"text"`, which every base reads.
        prompt_position: Where continuous prompts stand in a text that begins with `bos`, the token that the tokenizer
            of some bases writes before every text: `"before_bos"` or `"after_bos"`. Any other text they precede.
        retriever_name_or_path: In a checkpoint of prompt encoders alone, the one whose retriever they go with: a Hub
            id, or a directory, by the way to it from the checkpoint. None in one that has a retriever of its own.
        retriever_revision: Revision of that checkpoint on the Hub.
        retriever_fingerprint: Content hash of that retriever's weights
            (see [`~recipe_hf.modeling.weights.retriever_fingerprint`]).
        num_sentinel_tokens: Number `c` of trainable token embeddings of the knowledge sentinel (10 in the paper).
        use_pooler_output: Whether the encoder's pooler output joins the max, min and mean pooled features, as in
            the authors' code.
        similarity_scale: Factor on every dot product of a query with a key or the sentinel. `None` means
            `1 / sqrt(knowledge_dim)`, as in the authors' code; 1.0 is the text of the paper.
        similarity_temperature: `tau` of the contrastive losses that the retriever was trained with (paper eq. 14 to
            17): what a similarity was divided by there. Of it depends `Retrieval.probability` alone. Checkpoints older
            than this field do not say it.
        top_k_facts: How many facts may be prefixed together: those of the closest that exceed the threshold. This
            goes beyond the paper. (Not `top_k`, which says how `generate` samples.)
        num_verified_facts: How many of the facts nearest to a query the verifier reads, where there is one; 0 for
            none, which is the paper's form.
        verifier_margin: How far below the threshold the score of a fact may be for the verifier to read it.
        verifier_gap: How far below that of the best fact it may be; None for as far as may be.
        supersede_threshold: The verifier's logit above which a new fact takes the place of an older one; None where
            the verifier was not trained to tell.

    Raises:
        ValueError: If a size is impossible, or a form or position unknown.
    """

    model_type = "recipe"
    sub_configs = {"encoder_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "retrievals"]

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        base_fingerprint: list[float] | None = None,
        hidden_size: int = 768,
        vocab_size: int = 50257,
        max_position_embeddings: int = 1024,
        knowledge_dim: int = 1024,
        num_continuous_prompt_tokens: int = 3,
        num_answer_prompt_tokens: int = 0,
        num_sentinel_tokens: int = 10,
        use_pooler_output: bool = False,
        similarity_scale: float | None = None,
        similarity_temperature: float = 1.0,
        top_k_facts: int = 1,
        num_verified_facts: int = 0,
        verifier_margin: float = 1.0,
        verifier_gap: float | None = None,
        supersede_threshold: float | None = None,
        prompt_form: str = "continuous",
        prompt_position: str = "before_bos",
        retriever_name_or_path: str | None = None,
        retriever_revision: str | None = None,
        retriever_fingerprint: str | None = None,
        **kwargs: Any,
    ) -> None:
        if encoder_config is None:
            encoder_config = CONFIG_MAPPING["bert"]()
        elif isinstance(encoder_config, dict):
            if encoder_config.get("model_type") not in CONFIG_MAPPING:
                raise ValueError(
                    f"encoder_config must name a model_type known to transformers, "
                    f"got {encoder_config.get('model_type')!r}."
                )
            encoder_config = CONFIG_MAPPING[encoder_config["model_type"]](**encoder_config)
        else:
            # The parent class clears the attention implementation of its sub-configs: not in a loaded encoder's own.
            encoder_config = copy.deepcopy(encoder_config)
        self.encoder_config = encoder_config
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.base_fingerprint = base_fingerprint
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.vocab_size = _positive("vocab_size", vocab_size)
        self.max_position_embeddings = _positive("max_position_embeddings", max_position_embeddings)
        self.knowledge_dim = _positive("knowledge_dim", knowledge_dim, multiple_of=8)
        self.num_continuous_prompt_tokens = _positive("num_continuous_prompt_tokens", num_continuous_prompt_tokens)
        self.num_answer_prompt_tokens = num_answer_prompt_tokens and _positive(
            "num_answer_prompt_tokens", num_answer_prompt_tokens
        )
        self.num_sentinel_tokens = _positive("num_sentinel_tokens", num_sentinel_tokens)
        if num_sentinel_tokens > self.max_encoder_length:
            raise ValueError(
                f"num_sentinel_tokens must be at most the encoder's {self.max_encoder_length} positions, "
                f"got {num_sentinel_tokens}."
            )
        if similarity_scale is not None and not (similarity_scale > 0 and math.isfinite(similarity_scale)):
            raise ValueError(f"similarity_scale must be None or a positive finite number, got {similarity_scale!r}.")
        if not 0 < similarity_temperature < math.inf:
            raise ValueError(f"similarity_temperature must be positive and finite, got {similarity_temperature!r}.")
        self.use_pooler_output = use_pooler_output
        self.similarity_scale = similarity_scale
        self.similarity_temperature = similarity_temperature
        self.top_k_facts = _positive("top_k_facts", top_k_facts)
        self.num_verified_facts = num_verified_facts and _positive("num_verified_facts", num_verified_facts)
        if not 0 <= verifier_margin < math.inf:
            raise ValueError(f"verifier_margin must be at least 0 and finite, got {verifier_margin!r}.")
        self.verifier_margin = verifier_margin
        if verifier_gap is not None and not 0 <= verifier_gap < math.inf:
            raise ValueError(f"verifier_gap must be None, or at least 0 and finite, got {verifier_gap!r}.")
        self.verifier_gap = verifier_gap
        if supersede_threshold is not None and not math.isfinite(supersede_threshold):
            raise ValueError(f"supersede_threshold must be None or finite, got {supersede_threshold!r}.")
        self.supersede_threshold = supersede_threshold
        self.prompt_form = _one_of("prompt_form", prompt_form, PROMPT_FORMS)
        self.prompt_position = _one_of("prompt_position", prompt_position, PROMPT_POSITIONS)
        self.retriever_name_or_path = retriever_name_or_path
        self.retriever_revision = retriever_revision
        self.retriever_fingerprint = retriever_fingerprint
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        # The Auto classes may be handed this config: by then, they must know its model.
        _import_model()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: the code of a checkpoint is this library, never a copy of its files."""

    @property
    def is_of_no_base(self) -> bool:
        """Whether this is the config of a retriever alone, to which no base was attached yet."""
        return self.base_fingerprint is None and self.prompt_form == "text"

    @property
    def scale(self) -> float:
        """Factor on every similarity."""
        return self.knowledge_dim**-0.5 if self.similarity_scale is None else self.similarity_scale

    @property
    def max_encoder_length(self) -> int:
        """Longest text, in encoder tokens with the special ones, that the encoder takes."""
        positions = getattr(self.encoder_config, "max_position_embeddings", None) or 512
        if self.encoder_config.model_type in _POSITION_OFFSET_MODEL_TYPES:
            positions -= (self.encoder_config.pad_token_id or 0) + 1
        return positions

    @property
    def num_features(self) -> int:
        """Width of the pooled encoder features."""
        return self.encoder_config.hidden_size * (4 if self.use_pooler_output else 3)


def _positive(name: str, value: int, multiple_of: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value % multiple_of:
        kind = "a positive integer" if multiple_of == 1 else f"a positive multiple of {multiple_of}"
        raise ValueError(f"{name} must be {kind}, got {value!r}.")
    return value


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")
    return value


AutoConfig.register(RecipeConfig.model_type, RecipeConfig, exist_ok=True)
