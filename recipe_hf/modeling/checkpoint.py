"""Loading and saving RECIPE models: own weights in the checkpoint, the base beside it."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..knowledge import KnowledgeBase
from ..publishing import publisher
from . import frozen_base, loading
from .configuration import RecipeConfig
from .delegation import DelegatingPreTrainedModel
from .knowledge_mixin import KnowledgeMixin
from .loading import CONFIG_ARGUMENTS, HUB_ARGUMENTS
from .parts import check_parts, config_of, name_of_retriever, named_retriever, weights_of
from .prompt_encoder import AnswerPromptEncoder
from .queries import chat_markers
from .verifier import VERIFIER_FILE, Verifier

logger = logging.getLogger(__name__)

_PUSH_ARGUMENTS = ("repo_id", "private", "token", "commit_message", "revision", "create_pr", "tags")
_KEY_OFFSET = "answer_prompt_encoder.key_offset"
# What the Auto classes and pipelines add; none of it asks for anything of a base that is loaded already.
_AUTO_ARGUMENTS = ("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code")


class RecipePreTrainedModel(KnowledgeMixin, DelegatingPreTrainedModel):
    """The part of [`RecipeForCausalLM`] that loads and saves it."""

    config_class = RecipeConfig
    prompt_encoder: Any
    answer_prompt_encoder: AnswerPromptEncoder | None
    tokenizer: PreTrainedTokenizerBase | None
    # Whether the checkpoint brought a generation config of its own, which a base loaded for it takes on.
    _has_generation_config = False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        base_model: str | os.PathLike[str] | nn.Module | bool | None = None,
        retriever: str | os.PathLike[str] | None = None,
        config: RecipeConfig | str | os.PathLike[str] | None = None,
        verifier: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Loads a checkpoint: the recipe weights, in float32, its facts, and the base it was made for.

        Where the checkpoint holds prompt encoders alone, the retriever that its config names is brought too, with its
        verifier and with all fields of its own config that say how facts are found.

        Args:
            pretrained_model_name_or_path: Hub id or directory of the checkpoint.
            base_model: The base, where it is not to be loaded by the name and revision recorded in the checkpoint: a
                Hub id, a directory, the path of a GGUF file, or a causal LM. `False` attaches none: facts can be
                added, removed and looked up without it.
            retriever: For a checkpoint of prompt encoders alone, the directory or Hub id of a checkpoint with the
                retriever they go with, where that is not to be loaded by the name and revision recorded.
            config: A config to use instead of the checkpoint's.
            verifier: Whether to load the verifier, if the checkpoint has one. `False` gives the paper's form.
            **kwargs: `token`, `cache_dir`, `local_files_only` and `force_download` for checkpoint and base;
                `revision`, `subfolder` and `variant` for the checkpoint; fields of [`RecipeConfig`], of which
                `num_answer_prompt_tokens` gives a checkpoint with another number new prompts of answers; anything else
                (`dtype`, `device_map`, `max_memory`, `offload_folder`, `quantization_config`, `attn_implementation`,
                ...) says how to load the base.

        Raises:
            OSError: If the checkpoint, its retriever or its base cannot be found, or a file is missing.
            ValueError: If a file is truncated or altered, weights are missing, or the retriever or the base is not the
                checkpoint's.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        with_info = kwargs.pop("output_loading_info", False)
        place = {name: kwargs.pop(name) for name in ("revision", "subfolder") if name in kwargs}
        directory = loading.checkpoint_directory(pretrained_model_name_or_path, **place, **hub)
        loading.verify_checksums(directory)
        fields = {name: kwargs.pop(name) for name in CONFIG_ARGUMENTS & kwargs.keys()}
        if isinstance(config, RecipeConfig):
            config = copy.deepcopy(config)
            config.update(fields)
        else:
            config = loading.load_config(directory if config is None else config, **fields)
        trained = named_retriever(cls, directory, config, retriever, hub, verifier=verifier, **fields)
        # Through AutoModelForCausalLM, this argument arrives inside the config. It is meant for the base.
        attention = kwargs.pop("attn_implementation", None) or config._attn_implementation
        config._attn_implementation = None

        variant = kwargs.pop("variant", None)
        loaded: Any
        try:
            loaded = super().from_pretrained(
                directory,
                *model_args,
                config=config,
                dtype=torch.float32,
                variant=variant,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes="num_answer_prompt_tokens" in fields,
            )
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"The weights in {directory} are truncated or altered: {error}.") from error
        model, info = loaded
        is_new = "answer_prompt_encoder." if fields.get("num_answer_prompt_tokens") else ()
        # Checkpoints had no such offset at first, which is one of zero.
        absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])} - {_KEY_OFFSET}
        missing = sorted(name for name in absent if not name.startswith(is_new))
        of_prompts = {name for name in model.state_dict() if name.startswith("prompt_encoder.")}
        if of_prompts and of_prompts <= absent:
            raise ValueError(
                f"prompt_form must be 'text' for the checkpoint {str(pretrained_model_name_or_path)!r}, which has no "
                f"prompt encoder, got {model.config.prompt_form!r}."
            )
        if missing:
            raise ValueError(
                f"The weights in {directory} lack {len(missing)} tensors of the model, {', '.join(missing[:3])} among "
                f"them: the file was altered."
            )
        if absent:
            model.answer_prompt_encoder = AnswerPromptEncoder.of_known_answers(model.config)
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if not verifier:
            model.config.num_verified_facts = 0
        if trained is not None:
            model.retriever, model.verifier = trained.retriever, trained.verifier
        elif model.config.num_verified_facts:
            model.verifier = Verifier.load(directory, model.config)
        model._load_parts(directory)

        source = config.base_model_name_or_path if base_model is None else base_model
        if source is None:
            logger.warning("The checkpoint names no base: attach one before generating (attach_base, or base_model=).")
        elif source is not False:
            options = {name: kwargs.pop(name) for name in list(kwargs) if kwargs[name] is not None}
            if attention is not None:
                options["attn_implementation"] = attention
            if isinstance(source, (str, os.PathLike)):
                if source == config.base_model_name_or_path and config.base_model_revision:
                    options["revision"] = config.base_model_revision
                options |= hub
            else:
                options = {name: value for name, value in options.items() if name not in _AUTO_ARGUMENTS}
                if options.get("dtype") == "auto":
                    del options["dtype"]
            model._attach(source, recorded=base_model is None, **options)
        return (model, info) if with_info else model

    def _load_parts(self, directory: Path) -> None:
        """Loads tokenizers and facts of a checkpoint."""
        if self.retriever.tokenizer is None:
            encoder = directory / loading.ENCODER_DIRECTORY
            if not encoder.is_dir():
                raise FileNotFoundError(f"{encoder} is missing: the checkpoint lacks its encoder's tokenizer.")
            with frozen_base.loading(f"The tokenizer of {str(encoder)!r} cannot be loaded"):
                tokenizer = AutoTokenizer.from_pretrained(encoder)
            self.retriever.tokenizer = loading.prepare_encoder_tokenizer(tokenizer)
        if (directory / "tokenizer_config.json").is_file():
            self.tokenizer = frozen_base.load_tokenizer(directory)
        self._has_generation_config = (directory / "generation_config.json").is_file()
        facts = directory / loading.KNOWLEDGE_DIRECTORY
        self.knowledge = KnowledgeBase.load(facts) if facts.is_dir() else KnowledgeBase(self.config.knowledge_dim)

    def attach_base(self, base_model: str | os.PathLike[str] | nn.Module, **kwargs: Any) -> None:
        """Attaches the base, or another copy of it in place of the one attached.

        Args:
            base_model: Hub id, directory, path of a GGUF file, or a causal LM, which may be wrapped by PEFT.
            **kwargs: How to load it, as in `AutoModelForCausalLM.from_pretrained`.

        Raises:
            OSError: If it cannot be found.
            ValueError: If it is not the base that the checkpoint was made for, or cannot be prefixed.
        """
        self._attach(base_model, recorded=False, **kwargs)

    def _attach(self, source: str | os.PathLike[str] | nn.Module, recorded: bool, **kwargs: Any) -> None:
        named = isinstance(source, (str, os.PathLike))
        lm: Any
        try:
            lm = frozen_base.load_base(source, **kwargs)
        except OSError as error:
            if not recorded:
                raise
            raise OSError(
                f"The base of this checkpoint, base_model_name_or_path={str(source)!r}, could not be loaded "
                f"({error.__cause__ or error}). Give it as base_model=: a directory, a GGUF file or a loaded model."
            ) from error
        if self.config.is_of_no_base:
            name = str(source) if named else frozen_base.base_name(lm)
            revision = (
                frozen_base.base_revision(name, kwargs.get("revision"), kwargs.get("cache_dir")) if name else None
            )
            self.config.update({"base_model_name_or_path": name, "base_model_revision": revision})
            self.config.update(frozen_base.describe_base(lm))
        frozen_base.check_base(lm, self.config)
        if named and self._has_generation_config:
            lm.generation_config = self.generation_config
        hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "revision") if name in kwargs}
        self._set_base(lm, tokenizer_source=str(source) if named else frozen_base.base_name(lm), hub=hub)

    def _set_base(self, lm: Any, tokenizer_source: str | None, hub: dict[str, Any]) -> None:
        if self.tokenizer is None and tokenizer_source:
            try:
                self.tokenizer = frozen_base.load_tokenizer(tokenizer_source, **hub)
            except (OSError, ValueError) as error:
                logger.warning(f"No tokenizer was found beside the base ({error}): set model.tokenizer.")
        tokenizer = self.tokenizer
        if tokenizer is not None and tokenizer.chat_template and chat_markers(tokenizer) is None:
            logger.warning("The base's chat template marks no turn of a user: a chat is looked up as a whole.")
        if self.config.base_fingerprint is None:
            self.config.base_fingerprint = frozen_base.fingerprint(lm)
        self.lm = lm
        for part in (self.retriever, self.verifier, self.prompt_encoder, self.answer_prompt_encoder):
            if part is not None:
                part.to(self.device)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        parts: str = "all",
        retriever: str | os.PathLike[str] | None = None,
        retriever_revision: str | None = None,
        include_knowledge: bool = True,
        dtype: torch.dtype | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the checkpoint: recipe weights, config, tokenizers and facts. The base is not saved.

        Args:
            save_directory: Where to. A checkpoint there is replaced, its facts included.
            parts: What to save of the model: `"all"`; the `"retriever"` with its verifier, which serve any base; or
                the `"prompts"` for this base alone, in a checkpoint that names the retriever they go with.
            retriever: That retriever: the directory or Hub id of a checkpoint with the same weights. By default the
                one that the model's was taken from.
            retriever_revision: Branch, tag or commit of it on the Hub.
            include_knowledge: Whether to save the facts.
            dtype: Floating point type of the saved weights, `torch.float16` for a file of half the size. They are
                loaded as float32.
            is_main_process: Whether this process is the one that writes.
            state_dict: The weights, where they are not to be taken from the model.
            push_to_hub: Whether to push the checkpoint too, to `repo_id` or the name of the directory.
            **kwargs: Further arguments of `PreTrainedModel.save_pretrained`, and of `push_to_hub`.

        Raises:
            FileNotFoundError: If `retriever` is neither a directory nor can be a Hub id.
            ValueError: If `save_directory` is a file, or weights are out of the range of `dtype`; if `retriever` is
                missing for `"prompts"`, or has other weights than the model's.
        """
        directory = Path(save_directory)
        if directory.is_file():
            raise ValueError(f"save_directory must be a directory, got the file {save_directory}.")
        check_parts(parts)
        named: dict[str, Any] = {}
        if parts == "prompts":
            named = name_of_retriever(self, directory, retriever, retriever_revision)
        elif (given := retriever or retriever_revision) is not None:
            raise ValueError(f"retriever must be None for parts={parts!r}, which hold one, got {str(given)!r}.")
        weights = weights_of(self.state_dict() if state_dict is None else state_dict, parts)
        if dtype is not None:
            weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
            if beyond := [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]:
                raise ValueError(f"dtype must hold all weights, got {dtype}, beyond whose range {beyond[0]} is.")
        if is_main_process and (adapters := getattr(self.lm, "peft_config", None)):
            logger.warning(
                f"The base's adapters ({', '.join(adapters)}) are not saved, and the checkpoint names "
                f"{self.config.base_model_name_or_path or 'no model'} as its base, which is loaded without them. Save "
                f"them too (model.lm.save_pretrained), and give the adapted base as base_model= to from_pretrained."
            )
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / loading.CHECKSUMS_FILE).unlink(missing_ok=True)
        self.config.auto_map = loading.AUTO_MAP
        super().save_pretrained(
            directory, is_main_process=is_main_process, state_dict=weights, save_original_format=False, **kwargs
        )
        if not is_main_process:
            return
        config_of(self.config, parts, named).save_pretrained(directory)
        (directory / VERIFIER_FILE).unlink(missing_ok=True)
        if self.verifier is not None and parts != "prompts":
            self.verifier.save(directory)
        loading.write_checksums(directory)
        loading.write_remote_code(directory)
        if parts == "retriever":
            for name in loading.FILES_OF_BASE:
                (directory / name).unlink(missing_ok=True)
        elif self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
        if parts == "prompts":
            shutil.rmtree(directory / loading.ENCODER_DIRECTORY, ignore_errors=True)
        elif self.retriever.tokenizer is not None:
            self.retriever.tokenizer.save_pretrained(directory / loading.ENCODER_DIRECTORY)
        if include_knowledge:
            self.knowledge.save(directory / loading.KNOWLEDGE_DIRECTORY)
        else:
            shutil.rmtree(directory / loading.KNOWLEDGE_DIRECTORY, ignore_errors=True)
        if push_to_hub:
            hub.setdefault("repo_id", directory.name)
            of_parts: Any = {"parts": parts, "retriever": retriever, "retriever_revision": retriever_revision}
            self.push_to_hub(**hub, **of_parts, include_knowledge=include_knowledge, dtype=dtype)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        parts: str = "all",
        retriever: str | None = None,
        retriever_revision: str | None = None,
        include_knowledge: bool = True,
        dtype: torch.dtype | None = None,
        tags: list[str] | None = None,
        **hub_kwargs: Any,
    ) -> CommitInfo:
        """Pushes the checkpoint to the Hub, in one commit. Facts there are replaced, or without facts deleted.

        The repository keeps its card; a new one gets a card that says what the checkpoint knows of itself.

        Args:
            repo_id: The repository; it is made if it does not exist.
            parts: What to push of the model, as in `save_pretrained`.
            retriever: The Hub id of the checkpoint that prompts name.
            retriever_revision: Branch, tag or commit of it; the commit of now keeps prompts loadable as it moves on.
            include_knowledge: Whether to push the facts.
            dtype: Floating point type of the weights, as in `save_pretrained`.
            tags: Tags for the model card.
            **hub_kwargs: `private`, `token`, `commit_message`, `revision` and `create_pr`, as in
                [`~recipe_hf.hub.push_checkpoint`].

        Returns:
            The commit.

        Raises:
            OSError: If the Hub refuses, or the connection breaks.
            ValueError: As `save_pretrained`, or if prompts would name a directory.
        """
        with tempfile.TemporaryDirectory() as directory:
            of_parts: Any = {"parts": parts, "retriever": retriever, "retriever_revision": retriever_revision}
            self.save_pretrained(directory, **of_parts, include_knowledge=include_knowledge, dtype=dtype)
            tags = [*(self.model_tags or []), *(tags or [])]
            return publisher().push_checkpoint(
                directory, repo_id, include_knowledge=include_knowledge, tags=tags, **hub_kwargs
            )

    def export_sentence_transformer(self, path: str | os.PathLike[str]) -> None:
        """Writes the retriever as a sentence-transformers model, with the routes `query` and `document`.

        See [`~recipe_hf.modeling.export.export_sentence_transformer`].
        """
        from .export import export_sentence_transformer  # It imports sentence-transformers, which takes seconds.

        export_sentence_transformer(self, path)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Does nothing: the code of a checkpoint is this library, never a copy of its files."""
