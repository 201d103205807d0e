"""What clients send: OpenAI's fields, and `recipe`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as CompletionParams
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ...knowledge.checks import check_namespace, checked_where, is_unicode
from ..engine import Sampling
from .errors import OpenAIError

#: Fields that would change the answer, and the values of theirs that would not. Others of OpenAI's change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": (),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "web_search_options": (),
}
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20


def _is_unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("a text must be valid Unicode, without halves of surrogate pairs.")
    return text


Text = Annotated[str, Field(max_length=2**20), AfterValidator(_is_unicode)]
_Several = Field(max_length=1024)
Tokens = Annotated[list[int], Field(max_length=2**20)]


class RecipeOptions(BaseModel):
    """`recipe` of a request: among whose facts to look, and whether to look at all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    namespace: str | None = Field(default=None, description="Whose facts; by default the key's own.")
    where: dict[str, Any] | None = Field(default=None, description="Values that the metadata of a fact must have.")
    off: bool = Field(default=False, description="Whether to answer as the base does, without facts.")

    @field_validator("where")
    @classmethod
    def _is_filter(cls, where: Any) -> Any:
        return None if where is None else checked_where(where)

    @field_validator("namespace")
    @classmethod
    def _is_namespace(cls, namespace: str | None) -> str | None:
        if namespace is not None:
            check_namespace(namespace)
        return namespace


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """What chat and completion have in common."""

    model_config = ConfigDict(extra="allow")
    _known: ClassVar[frozenset[str]] = frozenset()

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=128)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024)
    stop: str | list[str] | None = Field(None, max_length=2**16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    recipe: RecipeOptions = RecipeOptions()

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe_or_default(cls, recipe: Any) -> Any:
        return {} if recipe is None else recipe

    @model_validator(mode="after")
    def _knows_its_fields(self) -> GenerationRequest:
        for name, value in (self.model_extra or {}).items():
            if name not in self._known:
                raise ValueError(f"Unrecognized request argument supplied: {name}")
            if name in _UNSUPPORTED and value not in (None, *_UNSUPPORTED[name]):
                raise ValueError(f"{name} is not supported by this server; vLLM serves it (docs/serving.md).")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings.

        Raises:
            OpenAIError: If there are too many, or one is empty.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or not all(stops):
            raise OpenAIError(f"stop must be at most {MAX_STOPS} texts that are not empty.", param="stop")
        return stops

    def sampling(self, max_tokens: int, logprobs: int | None, defaults: dict[str, Any], vocab_size: int) -> Sampling:
        """How to continue a prompt.

        Args:
            max_tokens: Most tokens of the answer.
            logprobs: As in [`Sampling`][recipe_hf.serving.engine.Sampling].
            defaults: The base's own temperature, top_p and top_k.
            vocab_size: How many tokens the base has.

        Raises:
            OpenAIError: If `logit_bias` or `stop` is not as described.
        """
        chosen = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        chosen = defaults | {name: value for name, value in chosen.items() if value is not None}
        bias = {int(id): value for id, value in (self.logit_bias or {}).items() if re.fullmatch("[0-9]{1,9}", id)}
        if len(bias) != len(self.logit_bias or {}) or not all(id < vocab_size for id in bias):
            raise OpenAIError(f"logit_bias must name token ids below {vocab_size}.", param="logit_bias")
        if not all(-100 <= value <= 100 for value in bias.values()):
            raise OpenAIError("logit_bias must be of values from -100 to 100.", param="logit_bias")
        return Sampling(
            max_tokens=max_tokens,
            seed=self.seed,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias,
            stop=self.stops,
            logprobs=logprobs,
            **chosen | {"top_k": max(0, chosen.get("top_k") or 0)},
        )


class TextPart(BaseModel):
    """A part of a message: text."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise ValueError(f"a part of a message must be text, got {kind!r}.")
        return content

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        told: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.tool_calls:
            told["tool_calls"] = [_with_arguments_read(call) for call in self.tool_calls]
        return (self.model_extra or {}) | told


class ChatRequest(GenerationRequest):
    """The body of `/v1/chat/completions`."""

    _known: ClassVar[frozenset[str]] = frozenset(ChatParams.__annotations__)

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto"] | None = None


class CompletionRequest(GenerationRequest):
    """The body of `/v1/completions`."""

    _known: ClassVar[frozenset[str]] = frozenset(CompletionParams.__annotations__)

    prompt: Text | Annotated[list[Text], _Several] | Tokens | Annotated[list[Tokens], _Several]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: Literal[1] | None = None


def _with_arguments_read(call: dict[str, Any]) -> dict[str, Any]:
    """A call of a tool, its arguments as templates go through them rather than as text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except ValueError as error:
        raise OpenAIError(f"messages: arguments of a tool call are no JSON: {error}.", param="messages") from error
