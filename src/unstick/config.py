"""Settings from `unstick.toml` and `UNSTICK_*`; a wrong one is told in one sentence.

An environment variable overrides the one key it names: `UNSTICK_SOURCES__MAIN__URL` is `url` under
`[sources.main]`. The file is `unstick.toml` in the working directory, or the one `UNSTICK_CONFIG` names.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action

DEFAULT_FILE = "unstick.toml"
EMBEDDED_URL = "sqlite:///unstick.db"
"""With nothing configured: a file in the working directory that holds Unstick's own jobs table."""

ColumnKey = Literal[
    "id", "state", "kind", "queue", "enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at",
    "success", "error", "attempt", "max_attempts", "worker", "token", "progress", "payload", "tokens", "cost",
]  # fmt: skip

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(said: object) -> timedelta:
    """Read `90s`, `5m`, `2h` or `3d`; any other text or number is a ValueError."""
    if isinstance(said, timedelta):
        return said
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", said) if isinstance(said, str) else None
    if match is None:
        raise ValueError("a duration is a number and a unit, such as 90s, 5m, 2h or 3d")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]
StateValue = str | int


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSettings(_Section):
    """One jobs table: where it is, and which of its columns and words mean what."""

    url: SecretStr = SecretStr(EMBEDDED_URL)
    table: str | None = None
    """The table's name, with its schema where it needs one (`billing.jobs`); None is Unstick's own jobs table."""
    columns: dict[ColumnKey, str] = Field(default_factory=dict)
    states: dict[JobState, tuple[StateValue, ...]] = Field(default_factory=dict)
    timezone: str = "UTC"
    """What naive times in the table mean, as an IANA name."""

    @field_validator("states", mode="before")
    @classmethod
    def _one_or_several(cls, states: object) -> object:
        if not isinstance(states, Mapping):
            return states
        return {state: (said,) if isinstance(said, str | int) else said for state, said in states.items()}


class PolicySettings(_Section):
    """Thresholds, action and recovery budget; the defaults are the contract's."""

    queued_after: Duration = Policy().queued_after
    running_after: Duration = Policy().running_after
    action: Action = Policy().action
    max_recoveries: int = Field(default=Policy().max_recoveries, ge=0)
    recovery_window: Duration = Policy().recovery_window
    retry_backoff: Duration = Policy().retry_backoff

    def policy(self) -> Policy:
        """Return these settings as the pipeline's value."""
        return Policy(**self.model_dump())


class AuthSettings(_Section):
    """What a token must say, where it says it at all."""

    issuer: str = "unstick"
    audience: str = "unstick"


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        env_prefix="UNSTICK_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )
    toml_file: ClassVar[Path | None] = None

    secret_key: SecretStr | None = None
    """Signs and checks bearer tokens (HS256); at least 32 bytes."""
    sources: dict[str, SourceSettings] = Field(default_factory=lambda: {"main": SourceSettings()}, min_length=1)
    policy: PolicySettings = PolicySettings()
    auth: AuthSettings = AuthSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments before the environment, and the environment before the file."""
        del dotenv_settings, file_secret_settings
        toml = TomlConfigSettingsSource(settings_cls, toml_file=cls.toml_file)
        return init_settings, env_settings, toml


def load_settings(file: Path | None = None) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: the file isn't there or isn't TOML, or a setting is unknown or wrong.
    """
    raise NotImplementedError
