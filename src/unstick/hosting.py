"""What a host app watches: what it said in code, or else what the configuration says."""

from dataclasses import dataclass
from functools import cache

from unstick.config import Settings, load_settings
from unstick.domain.errors import ConfigurationError
from unstick.domain.policy import Policy
from unstick.sql.mapping import JobTable
from unstick.wiring import chosen_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a host app watches, and how."""

    source: str
    jobs: JobTable
    policy: Policy


_configured: list[Host] = []


def configure(*, jobs: JobTable, policy: Policy | None = None, source: str = "main") -> None:
    """Say once, where the app starts, which table `AdminService(db)` is about.

    Without it `unstick.toml` and `UNSTICK_*` say so.

    Args:
        jobs: the table, as `JobTable.from_model(…)` or `JobTable(…)` declares it.
        policy: thresholds, action and budget; the contract's where nothing is said.
        source: the name it goes by in the ledger.
    """
    _configured[:] = [Host(source=source, jobs=jobs, policy=policy or Policy())]


def hosted(jobs: JobTable | None, policy: Policy | None) -> Host:
    """Return what is watched: what is passed, or else what was configured in code, or else in the settings."""
    if _configured:
        base = _configured[0]
    else:
        name, section = chosen_source(host_settings())
        if host_settings().ledger is not None:
            raise ConfigurationError(
                "[ledger] names a database of its own, but AdminService keeps its record in the session's database, "
                "where each change commits together with it. Leave [ledger] out, or pass the table to configure()."
            )
        base = Host(source=name, jobs=JobTable.from_settings(section), policy=host_settings().policy.policy())
    return Host(source=base.source, jobs=jobs or base.jobs, policy=policy or base.policy)


@cache
def host_settings() -> Settings:
    """Return the configuration, read once."""
    return load_settings()
