"""How a server is configured: by arguments, the environment (`RECIPE_HF_…`) and a YAML file, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

Positive = Annotated[int, Field(ge=1)]


class ServerSettings(BaseSettings):
    """The settings of a server. What is not given is read from the environment, then from `config`, a YAML file.

    Raises:
        ValueError: If a setting is unknown or not as described.
    """

    model_config = SettingsConfigDict(env_prefix="RECIPE_HF_", extra="forbid", frozen=True, env_ignore_empty=True)

    checkpoint: str = Field("", description="Directory or Hub id of the RECIPE checkpoint.")
    base_model: str | None = Field(None, description="The frozen base; by default the one the checkpoint names.")
    device_map: str | None = Field(None, description="Where the base goes, as in transformers.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="Precision of the base.")
    served_model_name: str | None = Field(None, description="What clients call the model; by default its directory.")

    knowledge: str | None = Field(None, description="File that keeps the facts, or the URL of a Qdrant server.")
    collection: str = Field("recipe", description="Collection of that Qdrant server.")
    qdrant_api_key: SecretStr | None = Field(None, description="Its API key.")
    read_only: bool = Field(False, description="Leave changes of facts to another process.")

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")
    keys: Path | None = Field(None, description="File of the keys that clients need, made by `recipe-hf keys add`.")
    frame_ancestors: str = Field("'none'", description="Whose pages may show ours in a frame, as CSP says it.")
    root_path: str = Field("", description="Path under which a proxy serves this.")

    max_batch_size: Positive = Field(16, description="Rows that are generated at once.")
    max_waiting: Positive = Field(128, description="Rows that may wait for it; more are refused with 429.")
    batch_wait: float = Field(0.005, ge=0, description="Seconds to wait for one more row before a batch is begun.")
    max_tokens: Positive = Field(4096, description="Most tokens of an answer.")
    max_body_bytes: Positive = Field(8 * 2**20, description="Largest body of a request.")
    max_import_bytes: Positive = Field(256 * 2**20, description="Largest file of facts to import.")
    rate: str | None = Field("6000/minute", description="Most requests of a key, as in `20/second`.")
    audit: Path | None = Field(None, description="File of the audit; by default it lies beside the facts.")
    shutdown_timeout: Positive = Field(60, description="Seconds that running answers get to end.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much to log.")
    log_format: Literal["json", "text"] = Field("json", description="How to write it: JSON lines, or for people.")
    log_texts: bool = Field(False, description="Log what exceptions say too, which may quote clients.")

    @field_validator("host")
    @classmethod
    def _no_blank_host(cls, host: str) -> str:
        if not host.strip():
            raise ValueError("host must be an address or a name, got an empty one.")
        return host

    @classmethod
    def read(cls, config: Path | None = None, **given: Any) -> ServerSettings:
        """The settings of arguments that are not None, the environment, and a YAML file.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If a setting is unknown or not as described.
        """
        if config is not None and not config.is_file():
            raise FileNotFoundError(f"config must be a file that exists, got {str(config)!r}.")

        class Read(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(yaml_file=config)

            @classmethod
            def settings_customise_sources(
                cls, settings_cls: type[BaseSettings], *args: Any, **sources: PydanticBaseSettingsSource
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                file = YamlConfigSettingsSource(settings_cls)
                return sources["init_settings"], sources["env_settings"], file

        try:
            read = Read(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            # Without the values: some are secrets.
            told = [f"{'.'.join(map(str, found['loc'])) or 'settings'}: {found['msg']}" for found in error.errors()]
            raise ValueError(f"settings must be as docs/serving.md says: {'; '.join(told)}.") from None
        return cls.model_construct(read.model_fields_set, **{name: getattr(read, name) for name in cls.model_fields})

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or Path(self.checkpoint).name or "recipe"
