"""Whether a base can hold the hidden prefix, tried out on the base itself when it is attached.

How `generate` passes its cache, masks and positions to `forward` changes with releases of transformers and differs
between models. Where the hidden prefix does not meet what it expects, the text would be wrong without an error.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .prefix import hidden_prefix

_NEW_TOKENS = 2  # The second one is read with the cache of the first.
_TEXT_LENGTHS = (3, 2)  # The first row gets the prefix, the second is padded and gets none.
_PREFIX_LENGTH = 2
# Mean difference of logits, in deviations of these. Rounding in half precision makes 0.01 to 0.03; a prefix that is
# not read, read twice, or at wrong positions, 0.2 and more.
_TOLERANCE = 0.1

_passed: set[tuple[type, str]] = set()


@torch.no_grad()
def check_prefix(lm: PreTrainedModel, device: torch.device) -> None:
    """Generates two tokens behind a hidden prefix, and compares their logits with those of concatenated embeddings.

    Models of one class and configuration are tried once. Costs four forwards of a few tokens.

    Args:
        lm: A base with the hook of [`install_prefix_hook`][recipe_hf.modeling.prefix.install_prefix_hook].
        device: Where its inputs belong.

    Raises:
        ValueError: If the logits are not those, or `generate` breaks.
    """
    kind = type(lm), lm.config.to_json_string()
    if kind in _passed or any(parameter.is_meta for parameter in lm.parameters()):
        return
    refused = (
        f"lm must be a causal LM that can hold a hidden prefix, got {type(lm).__name__} (model type "
        f"{lm.config.model_type!r}) with transformers {transformers.__version__}"
    )
    training = lm.training
    lm.eval()
    try:
        difference = _difference(lm, device)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{refused}, whose generate breaks behind one: {type(error).__name__}: {error}") from error
    finally:
        lm.train(training)
    if difference > _TOLERANCE:
        raise ValueError(
            f"{refused}, which writes other text behind one than behind the same embeddings given as text (logits "
            f"differ by {difference:.2f} deviations)."
        )
    _passed.add(kind)


def _difference(lm: Any, device: torch.device) -> float:
    """Mean difference of the two tokens' logits from those of the reference, in deviations; 0 if these are NaN."""
    words = torch.linspace(0.2, 0.6, _PREFIX_LENGTH + sum(_TEXT_LENGTHS), device=device)
    words = (words * lm.config.get_text_config().vocab_size).long()
    prefix, *texts = words.split([_PREFIX_LENGTH, *_TEXT_LENGTHS])
    columns = max(_TEXT_LENGTHS)
    ids = torch.stack([torch.cat([text.new_full((columns - len(text),), int(words[0])), text]) for text in texts])
    mask = torch.stack([torch.arange(columns, device=device) >= columns - len(text) for text in texts])
    embeddings = lm.get_input_embeddings()
    is_there = torch.tensor([[True], [False]], device=device).expand(-1, _PREFIX_LENGTH)
    config = GenerationConfig(
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        pad_token_id=int(words[0]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    with hidden_prefix(embeddings(prefix).expand(2, -1, -1), is_there):
        output = lm.generate(ids, attention_mask=mask.long(), generation_config=config)
    found = torch.stack(output.logits, dim=1)
    expected = torch.stack(
        [
            _reference(lm, torch.cat([before, text, tokens]))
            for before, text, tokens in zip((prefix, prefix[:0]), texts, output.sequences[:, columns:], strict=True)
        ]
    )
    difference: Tensor = (found.float() - expected.float()).abs().mean() / expected.float().std()
    return 0.0 if difference.isnan() else difference.item()


def _reference(lm: Any, tokens: Tensor) -> Tensor:
    """Logits `[2, vocab]` that the two last tokens were chosen by, the text being given as embeddings."""
    embeds = lm.get_input_embeddings()(tokens[:-1].unsqueeze(0))
    return lm(inputs_embeds=embeds, use_cache=False).logits[0, -_NEW_TOKENS:]
