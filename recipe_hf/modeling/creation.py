"""Making RECIPE models of a base: with a fresh retriever to train, or with a trained one to use at once."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from . import frozen_base, loading
from .checkpoint import RecipePreTrainedModel
from .configuration import OF_ONE_BASE, RecipeConfig
from .loading import CONFIG_ARGUMENTS, HUB_ARGUMENTS
from .parts import load_retriever
from .weights import retriever_fingerprint

if TYPE_CHECKING:
    from typing import Self

_DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# What the weights of a retriever are made for.
_OF_RETRIEVER = {"encoder_config", "knowledge_dim", "num_sentinel_tokens", "use_pooler_output"}


class CreatedModel(RecipePreTrainedModel):
    """The part of [`RecipeForCausalLM`] that makes a new one."""

    @classmethod
    def from_base_pretrained(
        cls,
        base_model: str | os.PathLike[str] | nn.Module,
        encoder: str | os.PathLike[str] | nn.Module | None = None,
        *,
        retriever: str | os.PathLike[str] | None = None,
        base_model_name_or_path: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoder_tokenizer: PreTrainedTokenizerBase | None = None,
        encoder_revision: str | None = None,
        retriever_revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Makes a model of a frozen base: to train, with a pretrained text encoder, or to use at once.

        A trained `retriever` finds facts for any base, and the base reads their statements as hidden text. With an
        `encoder`, all heads are fresh.

        Args:
            base_model: Hub id, directory, path of a GGUF file, or a causal LM, which may be wrapped by PEFT.
            encoder: Hub id, directory, path of a GGUF file, a transformers model, or a `SentenceTransformer`; by
                default all-MiniLM-L6-v2. Its weights are copied.
            retriever: Hub id or directory of a RECIPE checkpoint, whatever its base, whose retriever, verifier and
                fields on retrieval are taken instead. Its facts are not. `prompt_form` is `"text"` then, unless it is
                given as `"continuous"`: that makes a prompt encoder to train.
            base_model_name_or_path: What the checkpoint records as its base, where that is not `base_model`: the Hub
                id of a base loaded from a GGUF file, say.
            tokenizer: The base's tokenizer, by default the one beside it.
            encoder_tokenizer: The encoder's tokenizer, by default the one beside it.
            encoder_revision: Branch, tag or commit of an encoder given by its Hub id.
            retriever_revision: That of a retriever.
            **kwargs: Fields of [`RecipeConfig`], such as `knowledge_dim`; `token`, `cache_dir`, `local_files_only` and
                `force_download` for both parts; anything else (`revision`, `dtype`, `device_map`,
                `quantization_config`, ...) says how to load the base.

        Raises:
            OSError: If a part cannot be found.
            TypeError: If a part is neither a path nor a model.
            ValueError: If a part cannot be used, or a size is impossible; if what belongs to an encoder is given with
                a retriever, or the other way round.
        """
        if encoder_revision is not None and isinstance(encoder, nn.Module):
            raise ValueError(f"encoder_revision must be None with a loaded encoder, got {encoder_revision!r}.")
        fields = {name: kwargs.pop(name) for name in CONFIG_ARGUMENTS & kwargs.keys()}
        RecipeConfig(**fields)
        of_encoder = {"encoder": encoder, "encoder_tokenizer": encoder_tokenizer, "encoder_revision": encoder_revision}
        of_encoder |= {name: fields[name] for name in _OF_RETRIEVER & fields.keys()}
        if retriever is not None and (given := [name for name, value in of_encoder.items() if value is not None]):
            raise ValueError(f"{given[0]} must not be given with a trained retriever, which has its own.")
        if retriever is None and retriever_revision is not None:
            raise ValueError(f"retriever_revision must be None without a retriever, got {retriever_revision!r}.")
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        named = isinstance(base_model, (str, os.PathLike))
        revision = kwargs.get("revision")
        trained = None if retriever is None else load_retriever(cls, retriever, retriever_revision, hub, **fields)
        lm = frozen_base.load_base(base_model, **kwargs, **(hub if named else {}))
        if retriever is not None and trained is not None:
            found = {name: getattr(trained.config, name) for name in CONFIG_ARGUMENTS - OF_ONE_BASE}
            found |= {
                "prompt_form": "text",
                "retriever_name_or_path": os.path.abspath(retriever) if os.path.isdir(retriever) else str(retriever),
                "retriever_revision": frozen_base.base_revision(
                    str(retriever), retriever_revision, hub.get("cache_dir")
                ),
                "retriever_fingerprint": retriever_fingerprint(trained.retriever),
            }
        else:
            source = _DEFAULT_ENCODER if encoder is None else encoder
            options = hub if encoder_revision is None else hub | {"revision": encoder_revision}
            text_encoder, text_tokenizer = loading.load_encoder(source, encoder_tokenizer, **options)
            encoder_config = copy.deepcopy(text_encoder.config)
            encoder_config.dtype = torch.float32
            if os.path.exists(encoder_config.name_or_path or ""):
                encoder_config.name_or_path = ""
            found = {"encoder_config": encoder_config}

        name = str(base_model) if named else frozen_base.base_name(lm)
        if base_model_name_or_path is None and name is not None:
            revision = frozen_base.base_revision(name, revision, hub.get("cache_dir"))
        found |= {
            "base_model_name_or_path": base_model_name_or_path or name,
            "base_model_revision": revision,
            **frozen_base.describe_base(lm),
        }
        model = cls(RecipeConfig(**found | fields))
        if trained is not None:
            model.retriever, model.verifier = trained.retriever, trained.verifier
        else:
            loading.copy_encoder_weights(text_encoder, model.retriever.encoder, model.config.use_pooler_output)
            # Heads that start equal compare queries and statements as the encoder does.
            model.retriever.mlp_q.load_state_dict(model.retriever.mlp_k.state_dict())
            model.retriever.tokenizer = loading.prepare_encoder_tokenizer(text_tokenizer)
        model.tokenizer = tokenizer and frozen_base.prepare_tokenizer(tokenizer)
        model._set_base(lm, tokenizer_source=name or lm.config.name_or_path, hub=hub | {"revision": revision})
        return model.eval()
