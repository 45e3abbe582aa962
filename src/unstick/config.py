"""Settings from `unstick.toml` and `UNSTICK_*`; a wrong one is told in one sentence.

An environment variable overrides the one key it names: `UNSTICK_SOURCES__MAIN__URL` is `url` under
`[sources.main]`. Tables and lists may be given as JSON. The file is `unstick.toml` in the working directory, or
the one `UNSTICK_CONFIG` names.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from unstick.domain.alert import COOL_DOWN, AlertRules
from unstick.domain.brake import BrakeLimits, Unattended
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.naming import NamePattern
from unstick.domain.plan import PLAN_LIFETIME
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action
from unstick.domain.redaction import SECRET_KEYS
from unstick.domain.retention import Retention
from unstick.domain.schedule import CLEAN_EVERY, OBSERVE_EVERY, Every, Timetable

DEFAULT_FILE = "unstick.toml"
EMBEDDED_FILE = "unstick.db"
"""With nothing configured: a file in the working directory that holds Unstick's own jobs table."""
EMBEDDED_URL = f"sqlite:///{EMBEDDED_FILE}"

ColumnKey = Literal[
    "id", "state", "kind", "queue", "enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at",
    "success", "error", "attempt", "max_attempts", "worker", "token", "progress", "payload", "tokens", "cost",
    "key",
]  # fmt: skip

RegistryKey = Literal["id", "heartbeat_at", "expires_at", "started_at"]

_FILE_VARIABLE = "UNSTICK_CONFIG"
_PREFIX = "UNSTICK_"
_NESTED = "__"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=365)
_LONGEST_TEMPLATE = 4_000
SHORTEST_SECRET = 32


def parse_duration(said: object) -> timedelta:
    """Read `90s`, `5m`, `2h` or `3d`; any other text or number is a ValueError."""
    if isinstance(said, timedelta):
        return said
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhd])", said) if isinstance(said, str) else None
    if match is None:
        raise ValueError("must be a number and a unit, such as 90s, 5m, 2h or 3d")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def _duration_in_range(duration: timedelta) -> timedelta:
    if not timedelta(0) < duration <= _LONGEST:
        raise ValueError(f"must be more than nothing and at most {_LONGEST.days}d")
    return duration


def _source_name(name: str) -> str:
    if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) is None:
        raise ValueError("must be a name of at most 63 lower-case letters, digits and _, beginning with a letter")
    return name


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError("must be an IANA time zone, such as UTC or Europe/Berlin") from None
    return name


def _name_pattern(text: str) -> str:
    NamePattern(text)
    return text


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.username is None and parts.password is None and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:
        plain = False
    if not plain or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// address without a user or password in it")
    return url


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_duration_in_range)]
Name = Annotated[str, Field(min_length=1)]
WorkerPattern = Annotated[str, AfterValidator(_name_pattern)]
StateValue = Annotated[str, Strict()] | Annotated[int, Strict()]


@dataclass(frozen=True, slots=True)
class Cron:
    """Times by a cron expression, in UTC."""

    expression: str

    @property
    def apart(self) -> timedelta:
        """The longest gap between two of its times within some weeks, and within ten of them."""
        return _longest_gap(self.expression)

    def after(self, last: datetime) -> datetime:
        """Return the next of its times."""
        return next(CronSim(self.expression, last.astimezone(UTC)))


_SHORTEST_AUDIT = timedelta(days=30)

_SOME_TIME = datetime(2024, 1, 1, tzinfo=UTC)


@cache
def _longest_gap(expression: str) -> timedelta:
    times = enumerate(CronSim(expression, _SOME_TIME))
    some = [time for _, time in takewhile(lambda each: each[0] < _TIMES or each[1] - _SOME_TIME < _WEEKS, times)]
    return max(later - earlier for earlier, later in pairwise(some))


_WEEKS, _TIMES = timedelta(weeks=3), 10


def parse_schedule(said: object) -> object:
    """Read a duration (`10m`: so long after the last time began) or a cron expression (`*/10 * * * *`)."""
    if isinstance(said, str) and len(said.split()) > 1:
        try:
            next(CronSim(said, _SOME_TIME))
        except (CronSimError, StopIteration) as error:
            raise ValueError(
                f"is neither a duration, as 90s, 5m or 2h, nor a cron expression that ever comes true: {error}"
            ) from None
        return Cron(said)
    return Every(_duration_in_range(parse_duration(said)))


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def parse_address(said: object) -> Address:
    """Read `127.0.0.1:9464` or `[::1]:9464`."""
    if isinstance(said, Address):
        return said
    match = (
        re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", said) if isinstance(said, str) else None
    )
    if match is None or not 0 < int(match[3]) <= _LAST_PORT:
        raise ValueError("must be an address and a port, such as 127.0.0.1:9464")
    return Address(match[1] or match[2], int(match[3]))


_LAST_PORT = 65_535

# Without a serializer of its own pydantic warns whenever settings are dumped, for it takes neither class for the other.
ScheduleText = Annotated[Every | Cron, PlainValidator(parse_schedule), PlainSerializer(lambda schedule: schedule)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegistrySettings(_Section):
    """A table beside the jobs in which workers show that they live; a job's `worker` names its row."""

    table: Name
    columns: dict[RegistryKey, Name]
    """`id`; `heartbeat_at`, or `expires_at` where workers say until when they live, which may be a whole number of
    seconds since 1970; and `started_at` if it has one, which tells a restarted worker from the one before."""
    alive_for: Duration | None = None
    """How long a worker lives after its last heartbeat."""
    unowned: Literal["unknown", "released"] = "unknown"
    """What is said of a job that names no worker: `released` where the system strikes workers it thinks dead."""

    @field_validator("columns")
    @classmethod
    def _enough(cls, columns: dict[RegistryKey, str]) -> dict[RegistryKey, str]:
        if "id" not in columns or ("heartbeat_at" in columns) == ("expires_at" in columns):
            raise ValueError("must name `id`, and one of `heartbeat_at` and `expires_at`")
        return columns

    @model_validator(mode="after")
    def _lives_for_some_time(self) -> Self:
        if ("heartbeat_at" in self.columns) != (self.alive_for is not None):
            raise ValueError("needs `alive_for` for `heartbeat_at`, and none for `expires_at`")
        return self


class BackendsSettings(_Section):
    """PostgreSQL's own list of connections, for jobs that hold one to this database for as long as they run."""

    by: Literal["application_name", "pid"]
    """What the job's `worker` holds of its connection."""
    worker: WorkerPattern | None = None
    """What `worker` looks like, such as `{host}:{pid}`, if there is more in it."""

    @field_validator("worker")
    @classmethod
    def _tells(cls, worker: str | None, info: ValidationInfo) -> str | None:
        by = info.data.get("by")
        if worker is not None and by is not None and by not in NamePattern(worker).places:
            raise ValueError(f"must have {{{by}}} in it")
        return worker


class ProcessSettings(_Section):
    """The processes of this host, for workers that run beside Unstick."""

    worker: WorkerPattern | None = None
    """What `worker` looks like; the names of Unstick's own workers where nothing is said."""
    same_namespace: bool = False
    """The workers see the same process numbers as Unstick, though both are in a container."""

    @field_validator("worker")
    @classmethod
    def _tells(cls, worker: str | None) -> str | None:
        if worker is not None and not {"host", "pid"} <= set(NamePattern(worker).places):
            raise ValueError("must have {host} and {pid} in it")
        return worker


class HttpSettings(_Section):
    """An endpoint of the application's that knows which jobs its workers have."""

    url: Annotated[str, AfterValidator(_endpoint)]
    token: SecretStr | None = None
    """Sent as a bearer token."""


class ProgressSettings(_Section):
    """What jobs say of their own progress, compared from one look to the next."""

    moved_within: Duration = timedelta(minutes=10)
    """How long a job is believed to be at work after its progress moved."""


def several_words(states: object) -> object:
    """Read each state's words, one or several."""
    if not isinstance(states, Mapping):
        return states
    return {state: (said,) if isinstance(said, str | int) else said for state, said in states.items()}


class SourceSettings(_Section):
    """One jobs table: where it is, and which of its columns and words mean what; or a job system behind a broker."""

    url: SecretStr = SecretStr(EMBEDDED_URL)
    preset: Name | None = None
    """The job system whose table it is, which says the rest: `procrastinate`, say, or a file such as `./our.toml`."""
    table: Name | None = None
    """The table's name, with its schema where it needs one (`billing.jobs`); None is Unstick's own jobs table.

    With a preset, the system's table with the schema or prefix it has here; None where it has neither.
    """
    columns: dict[ColumnKey, Name] = Field(default_factory=dict)
    states: dict[JobState, tuple[StateValue, ...]] = Field(default_factory=dict)
    timezone: Annotated[str, AfterValidator(_time_zone)] = "UTC"
    """What naive times in the table mean, as an IANA name."""
    registry: RegistrySettings | None = None
    backends: BackendsSettings | None = None
    process: ProcessSettings | None = None
    http: HttpSettings | None = None
    progress: ProgressSettings | None = None

    @property
    def own_jobs(self) -> bool:
        """Tell whether it is Unstick's own jobs table."""
        return self.table is None and self.preset is None

    @model_validator(mode="after")
    def _one_mapping(self) -> Self:
        if self.preset is not None and (self.columns or self.states):
            raise ValueError("must have either `preset`, or `columns` and `states`, for a preset says both")
        return self

    @property
    def is_behind_broker(self) -> bool:
        """Tell whether the jobs are in no SQL database."""
        return self.preset == "rq"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        """Refuse a broker's address without its system, and a table's settings with it."""
        addressed = urlsplit(self.url.get_secret_value()).scheme in _BROKERS
        if addressed != self.is_behind_broker:
            raise ValueError(f'must have `preset = "rq"` with a url of a broker ({_BROKERS_SAID}), and not without one')
        said = [name for name in _OF_A_TABLE if name in self.model_fields_set]
        if self.is_behind_broker and said:
            raise ValueError(f'must not have `{said[0]}`, which is about a table, with `preset = "rq"`')
        return self

    @model_validator(mode="after")
    def _mapped_for_witnesses(self) -> Self:
        """Refuse a witness that would have nothing to go by; Unstick's own table has all columns."""
        needs: Mapping[str, ColumnKey] = {
            "registry": "worker", "backends": "worker", "process": "worker", "progress": "progress",
        }  # fmt: skip
        for witness, key in needs.items():
            mapped = self.table is not None and self.preset is None
            if mapped and getattr(self, witness) is not None and key not in self.columns:
                raise ValueError(f"must name a column for `{key}`, which the witness `{witness}` goes by")
        return self

    @field_validator("states", mode="before")
    @classmethod
    def _one_or_several(cls, states: object) -> object:
        return several_words(states)


_BROKERS = ("redis", "rediss", "unix")
_BROKERS_SAID = ", ".join(f"{scheme}://" for scheme in _BROKERS)
_OF_A_TABLE = ("table", "columns", "states", "timezone", "registry", "backends", "process", "progress")


class RuleSettings(_Section):
    """What holds for some jobs in place of the policy: the first rule whose globs all match."""

    source: Name = "*"
    queue: Name = "*"
    kind: Name = "*"
    queued_after: Duration | None = None
    running_after: Duration | None = None
    hung_after: Duration | None = None
    action: Action | None = None
    max_attempts: int | None = Field(default=None, ge=1)
    max_recoveries: int | None = Field(default=None, ge=0)
    recovery_window: Duration | None = None
    retry_backoff: Duration | None = None
    ask: bool | None = None
    looks: int | None = Field(default=None, ge=1)

    def rule(self) -> Rule:
        """Return these settings as the pipeline's value."""
        return Rule(**self.model_dump())


class PolicySettings(_Section):
    """Thresholds, action and recovery budget; the defaults are the contract's."""

    queued_after: Duration = Policy().queued_after
    running_after: Duration = Policy().running_after
    hung_after: Duration | None = None
    action: Action = Policy().action
    max_recoveries: int = Field(default=Policy().max_recoveries, ge=0)
    recovery_window: Duration = Policy().recovery_window
    retry_backoff: Duration = Policy().retry_backoff
    max_attempts: int | None = Field(default=None, ge=1)
    ask: bool = Policy().ask
    looks: int = Field(default=Policy().looks, ge=1)
    rules: tuple[RuleSettings, ...] = ()

    def policy(self) -> Policy:
        """Return these settings as the pipeline's value."""
        said = self.model_dump(exclude={"rules"})
        return Policy(**said, rules=tuple(rule.rule() for rule in self.rules))


class BrakeSettings(_Section):
    """How many jobs at once an unattended sweep may recover."""

    share: float = Field(default=BrakeLimits().share, ge=0, le=1)
    jobs: int = Field(default=BrakeLimits().jobs, ge=0)


class SweepSettings(_Section):
    """How sweeps that nobody watches are run."""

    observe_every: ScheduleText = OBSERVE_EVERY
    """How often stuck jobs are counted, and alerts raised: a duration or a cron expression."""
    clean_every: ScheduleText = CLEAN_EVERY
    """How often they are recovered."""
    brake: BrakeSettings = BrakeSettings()
    plan_lifetime: Duration = PLAN_LIFETIME
    """How long what a dry run has planned can be applied."""

    def timetable(self) -> Timetable:
        """Return how often sources are observed and swept."""
        return Timetable(observe=self.observe_every, clean=self.clean_every)

    def unattended(self) -> Unattended:
        """Return these settings as the pipeline's value."""
        return Unattended(every=self.clean_every.apart, brake=BrakeLimits(**self.brake.model_dump()))


class RetentionSettings(_Section):
    """How long Unstick's own records are kept."""

    events: Duration = Retention().events
    sightings: Duration = Retention().sightings
    audit: Duration | None = None
    """Without it the audit log and the recoveries stay for ever."""

    @field_validator("audit")
    @classmethod
    def _outlives_budgets(cls, audit: timedelta | None) -> timedelta | None:
        if audit is not None and audit < _SHORTEST_AUDIT:
            raise ValueError(f"must be at least {_SHORTEST_AUDIT.days}d: budgets, undo and late finishes go by it")
        return audit

    def retention(self) -> Retention:
        """Return these settings as the pipeline's value."""
        return Retention(events=self.events, sightings=self.sightings, audit=self.audit)


class LedgerSettings(_Section):
    """Where Unstick's own record is, if it can't be in the database of the jobs."""

    url: SecretStr


class AuthSettings(_Section):
    """What a token must say, where it says it at all."""

    issuer: str = "unstick"
    audience: str = "unstick"


def _some_secret(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().strip():
        raise ValueError("must not be empty")
    return secret


class PayloadSettings(_Section):
    """What of a job's payload is shown."""

    redact: tuple[Name, ...] = SECRET_KEYS
    """Globs of the keys whose values are left out, in lower case with `_` between the words."""


class MetricsSettings(_Section):
    """How metrics are scraped."""

    token: Annotated[SecretStr, AfterValidator(_some_secret)] | None = None
    """What a scrape must bear as its bearer token; without it anybody who reaches the port may read them."""
    listen: Annotated[Address, PlainValidator(parse_address)] | None = None
    """Where `unstick watch`, which has no HTTP of its own, serves them; `unstick serve` has them at `/metrics`."""


class MessageSettings(_Section):
    """Templates of a message's title and text, as `docs/how-to/alerts.md` tells; the default where nothing is said."""

    title: Name | None = Field(default=None, max_length=_LONGEST_TEMPLATE)
    body: Name | None = Field(default=None, max_length=_LONGEST_TEMPLATE)


def _channel_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets or any(len(secret.get_secret_value().encode()) < SHORTEST_SECRET for secret in secrets):
        raise ValueError(f"must have at least {SHORTEST_SECRET} bytes: take what `openssl rand -hex 32` prints")
    return secrets


class ChannelSettings(_Section):
    """Who is told of alerts: a webhook, or whatever Apprise knows an address for."""

    url: SecretStr | None = None
    """Where the webhook is sent to."""
    secret: Annotated[tuple[SecretStr, ...], AfterValidator(_channel_secrets)] | None = None
    """What the webhook is signed with; several while the receiver changes from one to the next."""
    apprise: SecretStr | None = None
    """An address as Apprise writes it: `mailto://…`, `slack://…`."""

    @field_validator("url")
    @classmethod
    def _is_endpoint(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _endpoint(url.get_secret_value())
        return url

    @field_validator("secret", mode="before")
    @classmethod
    def _one_or_several(cls, said: object) -> object:
        return (said,) if isinstance(said, str | SecretStr) else said

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.url is None) == (self.apprise is None):
            raise ValueError("must have either `url`, for a webhook, or `apprise`")
        if (self.url is None) != (self.secret is None):
            raise ValueError("must have `secret` with `url`, for a webhook is signed, and not without it")
        return self


class AlertSettings(_Section):
    """When somebody is told of what is wrong, and who."""

    cool_down: Duration = COOL_DOWN
    """How long nobody is told again of what they were told."""
    title: Name | None = Field(default=None, max_length=_LONGEST_TEMPLATE)
    body: Name | None = Field(default=None, max_length=_LONGEST_TEMPLATE)
    digest: MessageSettings = MessageSettings()
    """The same for a message about many alerts."""
    channels: dict[Annotated[str, AfterValidator(_source_name)], ChannelSettings] = Field(default_factory=dict)

    def rules(self) -> AlertRules:
        """Return these settings as the pipeline's value."""
        return AlertRules(cool_down=self.cool_down)


class Settings(BaseSettings):
    """Everything that can be configured; the environment goes before the arguments, which are the file's."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter=_NESTED, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    secret_key: SecretStr | None = None
    """Signs and checks bearer tokens (HS256), and what plans are signed with is derived from it; at least 32 bytes."""
    sources: dict[Annotated[str, AfterValidator(_source_name)], SourceSettings] = Field(
        default_factory=lambda: {"main": SourceSettings()}, min_length=1
    )
    ledger: LedgerSettings | None = None
    """A database of its own for the ledger; without it each source's ledger is in the source's database."""
    retention: RetentionSettings = RetentionSettings()
    policy: PolicySettings = PolicySettings()
    sweep: SweepSettings = SweepSettings()
    alerts: AlertSettings = AlertSettings()
    auth: AuthSettings = AuthSettings()
    read_only: bool = False
    """Whoever calls the API or opens the console can change nothing; the watch and the command line still do."""
    payloads: PayloadSettings = PayloadSettings()
    metrics: MetricsSettings = MetricsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the environment before the file."""
        del env_settings, dotenv_settings, file_secret_settings
        return _Environment(settings_cls), init_settings


class _Environment(EnvSettingsSource):
    """`UNSTICK_*`; what its parent overlooks, a misspelt name or broken JSON, is left for validation to refuse."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        # In this order a table given as JSON never wipes out the single keys given beside it.
        self.env_vars = dict(sorted(self.env_vars.items()))

    def __call__(self) -> dict[str, Any]:
        return {**dict.fromkeys(self._overlooked()), **super().__call__()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

    def _overlooked(self) -> Iterator[str]:
        for variable in self.env_vars:
            name = variable.upper()
            if not name.startswith(_PREFIX) or name == _FILE_VARIABLE:
                continue
            key = name.removeprefix(_PREFIX).lower()
            section, nested, _ = key.partition(_NESTED)
            field = self.settings_cls.model_fields.get(section)
            if field is None or (nested and not (section in _SECTIONS or self.field_is_complex(field))):
                yield key


def secret_bytes(secret: SecretStr) -> bytes:
    """Return a secret key's bytes; raise `ConfigurationError` where it is too short to be one."""
    key = secret.get_secret_value().encode()
    if len(key) < SHORTEST_SECRET:
        raise ConfigurationError(
            f"The secret key has {len(key)} bytes and needs at least {SHORTEST_SECRET}: set UNSTICK_SECRET_KEY to "
            "what `openssl rand -hex 32` prints."
        )
    return key


def load_settings(file: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        file: what to read instead of `UNSTICK_CONFIG` or `unstick.toml`.

    Raises:
        ConfigurationError: the file isn't there or isn't TOML, or a setting is unknown or wrong.
    """
    path = settings_file(file)
    said = {} if path is None else _beside(path, _read(path))
    try:
        return Settings(**said)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    raise ConfigurationError("\n".join(_sentences(found, path)))


def nothing_configured(settings: Settings, file: Path | None = None) -> bool:
    """Tell whether neither a file nor a variable said where the jobs are, so that settings are about the default."""
    return settings_file(file) is None and "sources" not in settings.model_fields_set


def settings_file(file: Path | None = None) -> Path | None:
    """Return the file that settings are read from: the one named, else `unstick.toml` where there is one."""
    named = file or os.environ.get(_FILE_VARIABLE)
    if named:
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no configuration file {path}.") from None
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The configuration file {path} is no TOML: {error}.") from None


def _beside(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """Look for the presets that a file names by their path beside that file, wherever the process was started."""
    if path.parent == Path():
        return said
    sources = said.get("sources")
    for source in sources.values() if isinstance(sources, dict) else ():
        preset = source.get("preset") if isinstance(source, dict) else None
        if isinstance(preset, str) and is_a_path(preset):
            source["preset"] = str(path.parent / preset)
    return said


def is_a_path(preset: str) -> bool:
    """Tell whether a preset is named by its file, and isn't one that comes with Unstick."""
    return "/" in preset or preset.endswith(".toml")


# What is said of a wrong setting. Its value is never part of it: it may be a secret.

_SECTIONS: Mapping[str, type[_Section]] = {
    "sources": SourceSettings,
    "ledger": LedgerSettings,
    "retention": RetentionSettings,
    "policy": PolicySettings,
    "sweep": SweepSettings,
    "alerts": AlertSettings,
    "auth": AuthSettings,
    "payloads": PayloadSettings,
    "metrics": MetricsSettings,
}
_WITNESSES: Mapping[str, type[_Section]] = {
    "registry": RegistrySettings,
    "backends": BackendsSettings,
    "process": ProcessSettings,
    "http": HttpSettings,
    "progress": ProgressSettings,
}
_KEY = "[key]"

_VERDICTS = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a word or a list of words",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "too_short": "must have at least one entry",
    "missing": "must be given",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def _sentences(errors: Iterable[ErrorDetails], file: Path | None) -> Iterable[str]:
    """Say one thing of each setting: pydantic says one for each type that a value could have had."""
    said: dict[tuple[str, ...], str] = {}
    for error in errors:
        path = _setting(tuple(str(step) for step in error["loc"] if step != _KEY))
        said.setdefault(path, _sentence(error, path, file))
    return said.values()


def _sentence(error: ErrorDetails, path: tuple[str, ...], file: Path | None) -> str:
    variable = _variable_saying(path) or (_variable(path) if file is None else None)
    exact = variable == _variable(path)
    place = variable if exact else f"{variable or file}: `{_place(path)}`"
    if error["type"] == "extra_forbidden" or (error["loc"][-1] == _KEY and len(path) > _IN_A_SOURCE):
        return f"{place} is no setting; {_instead(path, exact)}"
    return f"{place} {_verdict(error)}."


def _setting(path: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what pydantic adds below a setting, which names its own types."""
    match path:
        case ["sources", _, witness, "columns", *_] if witness in _WITNESSES:
            return path[:5]
        case _:
            return path[:4]


_IN_A_SOURCE = 3
"""`sources`, a source, and one of its settings; a key below is one of the setting's own."""


def _verdict(error: ErrorDetails) -> str:
    said = _VERDICTS.get(error["type"], error["msg"]).removeprefix("Value error, ")
    return re.sub("^(Input|String|Dictionary) should ", "must ", said)


def _instead(path: Sequence[str], is_variable: bool) -> str:
    known = list(_known(path))
    near = difflib.get_close_matches(path[-1], [*known, *_nested_names()] if is_variable else known, n=1)
    if not near:
        return f"there are: {', '.join(known)}."
    return f"did you mean `{_variable((*path[:-1], near[0])) if is_variable else near[0]}`?"


def _known(path: Sequence[str]) -> Iterable[str]:
    match path:
        case [_]:
            return Settings.model_fields
        case [_, _, "columns", _]:
            return get_args(ColumnKey)
        case [_, _, "registry", "columns", _]:
            return get_args(RegistryKey)
        case [_, _, "states", _]:
            return list(JobState)
        case _:
            return _section_of(path).model_fields


def _section_of(path: Sequence[str]) -> type[_Section]:
    match path:
        case [_, _, witness, _] if witness in _WITNESSES:
            return _WITNESSES[witness]
        case [_, "rules", _, _]:
            return RuleSettings
        case [_, "brake", _]:
            return BrakeSettings
        case ["alerts", "channels", _, _]:
            return ChannelSettings
        case ["alerts", "digest", _]:
            return MessageSettings
        case _:
            return _SECTIONS[path[0]]


def _nested_names() -> Iterator[str]:
    """Name what stands in a section as a variable does, for those who wrote one underscore instead of two."""
    for section, model in _SECTIONS.items():
        table = f"{section}{_NESTED}main" if section == "sources" else section
        yield from (f"{table}{_NESTED}{key}" for key in model.model_fields)


def _place(path: Sequence[str]) -> str:
    """Say where a setting stands as the file would: `[sources.main] columns.state`."""
    match path:
        case ["sources", _, witness, _, *_] if witness in _WITNESSES:
            tables = 3
        case ["sources", *_]:
            tables = 2
        case ["alerts", "channels", _, *_]:
            tables = 3
        case _:
            tables = 1 if path[0] in _SECTIONS else 0
    heading = f"[{'.'.join(path[:tables])}]" if tables else ""
    return f"{heading} {'.'.join(path[tables:])}".strip()


def _variable(path: Sequence[str]) -> str:
    return _PREFIX + _NESTED.join(path).upper()


def _variable_saying(path: Sequence[str]) -> str | None:
    """Return the environment variable that says this, or None where the file does."""
    said: object = _Environment(Settings)()
    for step in path:
        if not isinstance(said, Mapping) or step not in said:
            return None
        said = said[step]
    given = sorted(name.upper() for name in os.environ)
    whole = [name for length in range(len(path), 0, -1) if (name := _variable(path[:length])) in given]
    below = [name for name in given if name.startswith(_variable(path) + _NESTED)]
    return (whole + below)[0]
