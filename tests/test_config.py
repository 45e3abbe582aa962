"""What can be configured, what overrides what, and what is said of a setting that is wrong."""

import os
import re
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest

from unstick.config import EMBEDDED_URL, PolicySettings, Settings, load_settings, parse_duration
from unstick.domain.brake import BrakeLimits, Unattended
from unstick.domain.errors import ConfigurationError
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"

FULL = """
    secret_key = "a secret of thirty-two bytes or more"

    [sources.main]
    url = "postgresql://file/app"
    table = "billing.ai_generation_jobs"
    columns = { id = "id", state = "status", started_at = "started_at" }
    states = { queued = ["queued", "pending"], running = "running", succeeded = 3 }
    timezone = "Europe/Berlin"

    [sources.reports]
    url = "sqlite:///reports.db"

    [policy]
    queued_after = "10m"
    running_after = "2h"
    action = "retry"
    max_recoveries = 2
    recovery_window = "3d"
    retry_backoff = "45s"
    looks = 2

    [[policy.rules]]
    kind = "slow*"
    looks = 3

    [auth]
    issuer = "platform"
    audience = "admin"
"""


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("UNSTICK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "unstick.toml") -> Path:
    file = Path(name)
    file.write_text(dedent(text), encoding="utf-8")
    return file


def complaint(file: Path | None = None) -> str:
    """Load settings that are wrong, and return what is said: one sentence that hides its causes."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file)
    said = str(caught.value)
    assert "\n" not in said
    assert said[-1] in ".?"
    assert not re.search("pydantic|Input should|Traceback|type=", said)
    assert caught.value.__context__ is None or caught.value.__suppress_context__ or caught.value.__cause__
    return said


def source_url(settings: Settings, name: str = "main") -> str:
    return settings.sources[name].url.get_secret_value()


# Where settings come from


def test_with_nothing_configured_the_contracts_defaults_hold() -> None:
    settings = load_settings()
    assert list(settings.sources) == ["main"]
    assert source_url(settings) == EMBEDDED_URL
    assert settings.sources["main"].table is None
    assert settings.secret_key is None
    assert settings.policy.policy() == Policy()
    assert (settings.policy.queued_after, settings.policy.running_after) == (
        timedelta(minutes=5),
        timedelta(minutes=30),
    )
    assert settings.policy.action is Action.MARK_FAILED


def test_everything_can_be_said_in_the_file() -> None:
    write(FULL)
    settings = load_settings()
    main = settings.sources["main"]
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == "a secret of thirty-two bytes or more"
    assert (source_url(settings), main.table) == ("postgresql://file/app", "billing.ai_generation_jobs")
    assert main.columns == {"id": "id", "state": "status", "started_at": "started_at"}
    assert main.states == {"queued": ("queued", "pending"), "running": ("running",), "succeeded": (3,)}
    assert main.timezone == "Europe/Berlin"
    assert source_url(settings, "reports") == "sqlite:///reports.db"
    assert (settings.auth.issuer, settings.auth.audience) == ("platform", "admin")
    assert settings.policy.policy() == Policy(
        queued_after=timedelta(minutes=10),
        running_after=timedelta(hours=2),
        action=Action.RETRY,
        max_recoveries=2,
        recovery_window=timedelta(days=3),
        retry_backoff=timedelta(seconds=45),
        looks=2,
        rules=(Rule(kind="slow*", looks=3),),
    )


def test_the_named_file_goes_before_the_variables_and_that_before_the_directorys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('[auth]\nissuer = "directory"')
    assert load_settings().auth.issuer == "directory"
    write('[auth]\nissuer = "variable"', "by-variable.toml")
    monkeypatch.setenv("UNSTICK_CONFIG", "by-variable.toml")
    assert load_settings().auth.issuer == "variable"
    argument = write('[auth]\nissuer = "argument"', "by-argument.toml")
    assert load_settings(argument).auth.issuer == "argument"


def test_a_preset_that_is_a_file_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    folder, said = tmp_path / "etc", "[sources.a]\npreset = './our.toml'\n[sources.b]\npreset = 'river'\n"
    folder.mkdir()
    elsewhere = load_settings(write(said, str(folder / "unstick.toml"))).sources
    assert (elsewhere["a"].preset, elsewhere["b"].preset) == (f"{folder}/our.toml", "river")
    assert load_settings(write(said)).sources["a"].preset == "./our.toml"


def test_an_empty_unstick_config_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_CONFIG", "")
    assert load_settings() == Settings()


def test_a_named_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint(Path("nowhere.toml")) == "There is no configuration file nowhere.toml."
    monkeypatch.setenv("UNSTICK_CONFIG", "elsewhere.toml")
    assert complaint() == "There is no configuration file elsewhere.toml."


def test_a_file_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"The configuration file {tmp_path} can't be read: Is a directory."


@pytest.mark.parametrize("content", [b"[sources.main\n", b'url = "\xff"\n', b'secret_key = "hunter2\n'])
def test_a_file_that_is_no_toml_is_an_error_that_quotes_none_of_it(content: bytes) -> None:
    Path("unstick.toml").write_bytes(content)
    said = complaint()
    assert said.startswith("The configuration file unstick.toml is no TOML: ")
    assert "hunter2" not in said


# What overrides what


def test_a_variable_overrides_the_one_key_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    write(FULL)
    before = load_settings()
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL", "postgresql://user:password@env/app")
    after = load_settings()
    assert source_url(after) == "postgresql://user:password@env/app"
    put_back = after.sources["main"].model_copy(update={"url": before.sources["main"].url})
    assert after.model_copy(update={"sources": after.sources | {"main": put_back}}) == before


def test_every_kind_of_setting_can_come_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SECRET_KEY": SECRET,
        "POLICY__QUEUED_AFTER": "7m",
        "POLICY__MAX_RECOVERIES": "0",
        "POLICY__ACTION": "retry",
        "AUTH__ISSUER": "me",
        "SOURCES__BILLING_EU__URL": "sqlite:///b.db",
        "SOURCES__BILLING_EU__TIMEZONE": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(f"UNSTICK_{name}", value)
    settings = load_settings()
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == SECRET
    assert settings.policy == PolicySettings(queued_after=timedelta(minutes=7), max_recoveries=0, action=Action.RETRY)
    assert settings.auth.issuer == "me"
    assert list(settings.sources) == ["billing_eu"]
    assert settings.sources["billing_eu"].timezone == "Asia/Tokyo"


def test_one_column_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    write(FULL)
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__COLUMNS__STATE", "phase")
    assert load_settings().sources["main"].columns == {"id": "id", "state": "phase", "started_at": "started_at"}


@pytest.mark.parametrize("order", [1, -1])
def test_tables_and_lists_may_be_json_with_single_keys_beside_them(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    variables = [
        ("UNSTICK_SOURCES__MAIN__COLUMNS", '{"id": "id", "state": "status", "kind": "job_type"}'),
        ("UNSTICK_SOURCES__MAIN__COLUMNS__STATE", "phase"),
        ("UNSTICK_SOURCES__MAIN__STATES", '{"queued": "new", "running": ["busy", "working"]}'),
        ("UNSTICK_SOURCES__MAIN__STATES__FAILED", '["failed", "dead"]'),
        ("UNSTICK_SOURCES__MAIN__STATES__SUCCEEDED", "done"),
        ("UNSTICK_SOURCES__MAIN__STATES__CANCELLED", "5"),
    ]
    for name, value in variables[::order]:
        monkeypatch.setenv(name, value)
    main = load_settings().sources["main"]
    assert main.columns == {"id": "id", "state": "phase", "kind": "job_type"}
    assert main.states == {
        "queued": ("new",),
        "running": ("busy", "working"),
        "failed": ("failed", "dead"),
        "succeeded": ("done",),
        "cancelled": (5,),
    }


def test_a_section_may_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_POLICY", '{"action": "retry", "queued_after": "9m"}')
    monkeypatch.setenv("UNSTICK_POLICY__QUEUED_AFTER", "8m")
    policy = load_settings().policy
    assert (policy.action, policy.queued_after) == (Action.RETRY, timedelta(minutes=8))


# What is said of names nobody knows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[sources.main]\ncolums = { id = "id" }', "`[sources.main] colums` is no setting; did you mean `columns`?"),
        ('secretkey = "x"', "`secretkey` is no setting; did you mean `secret_key`?"),
        ('[polcy]\naction = "retry"', "`polcy` is no setting; did you mean `policy`?"),
        ('[policy]\nqueud_after = "5m"', "`[policy] queud_after` is no setting; did you mean `queued_after`?"),
        ('[auth]\nzzz = "x"', "`[auth] zzz` is no setting; there are: issuer, audience."),
        (
            '[sources.main]\ncolumns = { id = "id", stat = "status" }',
            "`[sources.main] columns.stat` is no setting; did you mean `state`?",
        ),
        (
            '[sources.main.states]\nquued = "new"',
            "`[sources.main] states.quued` is no setting; did you mean `queued`?",
        ),
    ],
)
def test_an_unknown_key_is_told_with_its_place_and_the_nearest_known_one(text: str, said: str) -> None:
    write(text)
    assert complaint() == f"unstick.toml: {said}"


def test_every_wrong_setting_is_told_at_once_each_in_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[sources.main]\nurll = "x"\nstates = { running = 1.5 }\n[sweep]\nclean_every = "10"\n')
    monkeypatch.setenv("UNSTICK_POLICY__ACTION", "explode")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert [line.partition(" must ")[0].partition(" is no ")[0] for line in str(caught.value).splitlines()] == [
        "unstick.toml: `[sources.main] states.running`",
        "unstick.toml: `[sources.main] urll`",
        "UNSTICK_POLICY__ACTION",
        "unstick.toml: `[sweep] clean_every`",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("UNSTICK_SECRETKEY", "UNSTICK_SECRETKEY is no setting; did you mean `UNSTICK_SECRET_KEY`?"),
        (
            "UNSTICK_SOURCES__MAIN__COLUMS",
            "UNSTICK_SOURCES__MAIN__COLUMS is no setting; did you mean `UNSTICK_SOURCES__MAIN__COLUMNS`?",
        ),
        ("UNSTICK_SOURCE__MAIN__URL", "UNSTICK_SOURCE__MAIN__URL is no setting; "),
        ("UNSTICK_POLICY_ACTION", "UNSTICK_POLICY_ACTION is no setting; did you mean `UNSTICK_POLICY__ACTION`?"),
        (
            "UNSTICK_SOURCES_MAIN_URL",
            "UNSTICK_SOURCES_MAIN_URL is no setting; did you mean `UNSTICK_SOURCES__MAIN__URL`?",
        ),
        ("UNSTICK_SECRET_KEY__OLD", "UNSTICK_SECRET_KEY__OLD is no setting; did you mean `UNSTICK_SECRET_KEY`?"),
        (
            "UNSTICK_",
            (
                "UNSTICK_ is no setting; "
                "there are: secret_key, sources, ledger, retention, policy, sweep, alerts, auth, read_only, payloads, "
                "metrics."
            ),
        ),
    ],
)
def test_a_misspelt_variable_is_never_overlooked(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert complaint().startswith(said)


def test_an_unknown_key_inside_json_is_told_with_the_variable_and_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    write(FULL)
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__COLUMNS", '{"stat": "status"}')
    place = "UNSTICK_SOURCES__MAIN__COLUMNS: `[sources.main] columns.stat`"
    assert complaint() == f"{place} is no setting; did you mean `state`?"


def test_the_file_is_blamed_for_what_the_file_says_beside_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write('[sources.main]\ncolumns = { stat = "status" }', "app.toml")
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__COLUMNS", '{"id": "id"}')
    assert complaint(file) == "app.toml: `[sources.main] columns.stat` is no setting; did you mean `state`?"


@pytest.mark.parametrize("name", ["Main", "1st", "a-b", "_main", "", "é", "a" * 64])
def test_a_source_has_a_plain_name(name: str) -> None:
    write(f'[sources."{name}"]\nurl = "sqlite:///x.db"')
    said = complaint()
    assert said.startswith(f"unstick.toml: `[sources.{name}]` must be a name of at most 63 lower-case letters")


# Witnesses

JOBS = """
    [sources.main]
    table = "procrastinate_jobs"
    columns = { id = "id", state = "status", worker = "worker_id", progress = "progress" }
"""
WITNESSES = """
    [sources.main.registry]
    table = "procrastinate_workers"
    columns = { id = "id", heartbeat_at = "last_heartbeat" }
    alive_for = "30s"
    unowned = "released"

    [sources.main.backends]
    by = "pid"
    worker = "{host}:{pid}"

    [sources.main.process]

    [sources.main.http]
    url = "https://app.internal/held"
    token = "secret"

    [sources.main.progress]
    moved_within = "20m"
"""


def test_every_witness_can_be_said_in_the_file() -> None:
    write(JOBS + WITNESSES)
    main = load_settings().sources["main"]
    assert main.registry is not None
    assert (main.registry.table, main.registry.alive_for) == ("procrastinate_workers", timedelta(seconds=30))
    assert main.registry.columns == {"id": "id", "heartbeat_at": "last_heartbeat"}
    assert main.backends is not None
    assert (main.backends.by, main.backends.worker) == ("pid", "{host}:{pid}")
    assert main.process is not None
    assert (main.process.worker, main.process.same_namespace) == (None, False)
    assert main.http is not None
    assert main.http.token is not None
    assert main.http.token.get_secret_value() == "secret"
    assert main.progress is not None
    assert main.progress.moved_within == timedelta(minutes=20)


def test_an_endpoints_token_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[sources.main.http]\nurl = "https://app.internal/held"')
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__HTTP__TOKEN", SECRET)
    settings = load_settings()
    assert settings.sources["main"].http is not None
    assert settings.sources["main"].http.token is not None
    assert settings.sources["main"].http.token.get_secret_value() == SECRET
    assert SECRET not in f"{settings!r} {settings.model_dump()}"


def test_what_is_missing_is_told_by_the_variable_where_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__HTTP__TOKEN", SECRET)
    assert complaint() == "UNSTICK_SOURCES__MAIN__HTTP__URL must be given."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sources.main.registery]", "`[sources.main] registery` is no setting; did you mean `registry`?"),
        (
            '[sources.main.registry]\nalive_for = "30s"\ncolumns = { id = "id", heartbeat_at = "x" }',
            "`[sources.main.registry] table` must be given.",
        ),
        (
            '[sources.main.registry]\ntable = "w"\nalive_for = "30s"\ncolumns = { id = "id", hartbeat_at = "x" }',
            "`[sources.main.registry] columns.hartbeat_at` is no setting; did you mean `heartbeat_at`?",
        ),
        (
            '[sources.main.registry]\ntable = "w"\nalive_for = "30s"\ncolumns = { id = "id" }',
            "`[sources.main.registry] columns` must name `id`, and one of `heartbeat_at` and `expires_at`.",
        ),
        (
            '[sources.main.registry]\ntable = "w"\ncolumns = { id = "id", heartbeat_at = "x" }',
            "`[sources.main] registry` needs `alive_for` for `heartbeat_at`, and none for `expires_at`.",
        ),
        (
            '[sources.main.registry]\ntable = "w"\nalive_for = "30s"\ncolumns = { id = "id", heartbeat_at = 3 }',
            "`[sources.main.registry] columns.heartbeat_at` must be text.",
        ),
        (
            '[sources.main.registry]\ntable = "w"\nalive_for = "soon"\ncolumns = { id = "id", heartbeat_at = "x" }',
            "`[sources.main.registry] alive_for` must be a number and a unit, such as 90s, 5m, 2h or 3d.",
        ),
        ('[sources.main.backends]\nby = "name"', "`[sources.main.backends] by` must be 'application_name' or 'pid'."),
        (
            '[sources.main.backends]\nby = "pid"\nworker = "{host}"',
            "`[sources.main.backends] worker` must have {pid} in it.",
        ),
        (
            '[sources.main.process]\nworker = "{pid}"',
            "`[sources.main.process] worker` must have {host} and {pid} in it.",
        ),
        (
            '[sources.main.process]\nworker = "{hots}:{pid}"',
            (
                "`[sources.main.process] worker` may have {host}, {pid}, {application_name}, {any} in it, "
                "the first three once."
            ),
        ),
        (
            '[sources.main.process]\nsame_namespace = "so"',
            "`[sources.main.process] same_namespace` must be true or false.",
        ),
        (
            "[sources.main.process]\npid = 3",
            "`[sources.main.process] pid` is no setting; there are: worker, same_namespace.",
        ),
        ("[sources.main]\nprocess = 3", "`[sources.main] process` must be a table."),
        (
            '[sources.main.http]\nurl = "https://user:hunter2@app/held"',
            "`[sources.main.http] url` must be an http:// or https:// address without a user or password in it.",
        ),
        (
            '[sources.main.http]\nurl = "ftp://app/held"',
            "`[sources.main.http] url` must be an http:// or https:// address without a user or password in it.",
        ),
        (
            '[sources.main.http]\nurl = "https://app:99999/held"',
            "`[sources.main.http] url` must be an http:// or https:// address without a user or password in it.",
        ),
        (
            '[sources.main.progress]\nmoved_within = "0s"',
            "`[sources.main.progress] moved_within` must be more than nothing and at most 365d.",
        ),
    ],
)
def test_a_wrong_witness_is_told_in_one_sentence(text: str, said: str) -> None:
    write(text)
    assert complaint() == f"unstick.toml: {said}"


@pytest.mark.parametrize(
    ("witness", "key"),
    [
        (
            '[sources.main.registry]\ntable = "w"\nalive_for = "30s"\ncolumns = { id = "id", heartbeat_at = "x" }',
            "worker",
        ),
        ('[sources.main.backends]\nby = "pid"', "worker"),
        ("[sources.main.process]", "worker"),
        ("[sources.main.progress]", "progress"),
    ],
)
def test_a_witness_needs_the_column_it_goes_by(witness: str, key: str) -> None:
    name = witness.removeprefix("[sources.main.").partition("]")[0]
    write('[sources.main]\ntable = "jobs"\ncolumns = { id = "id" }\n' + witness)
    assert complaint() == (
        f"unstick.toml: `[sources.main]` must name a column for `{key}`, which the witness `{name}` goes by."
    )
    write(witness)  # Unstick's own table has them all
    load_settings()


# Alerts

CHANNELS = """
    [alerts]
    cool_down = "2h"
    title = "{{ word }}"
    digest = { body = "{{ number }}" }

    [alerts.channels.pager]
    url = "https://pager.example/?key=1"
    secret = "hunter2-hunter2-hunter2-hunter2-hunter2"

    [alerts.channels.mail]
    apprise = "mailto://me:hunter2@example.org"
"""


def test_channels_and_words_of_alerts_can_be_said_in_the_file() -> None:
    write(CHANNELS)
    alerts = load_settings().alerts
    pager, mail = alerts.channels["pager"], alerts.channels["mail"]
    assert (alerts.rules().cool_down, alerts.title, alerts.body) == (timedelta(hours=2), "{{ word }}", None)
    assert (alerts.digest.title, alerts.digest.body) == (None, "{{ number }}")
    assert pager.url is not None
    assert pager.url.get_secret_value() == "https://pager.example/?key=1"
    assert pager.secret is not None
    assert [each.get_secret_value() for each in pager.secret] == [SECRET]
    assert mail.apprise is not None
    assert mail.apprise.get_secret_value() == "mailto://me:hunter2@example.org"
    assert "hunter2" not in repr(alerts)
    assert "key=1" not in repr(alerts)
    assert Settings().alerts.rules().cool_down == timedelta(hours=4)


def test_a_channels_secret_can_come_from_the_environment_and_be_several(monkeypatch: pytest.MonkeyPatch) -> None:
    write(CHANNELS)
    monkeypatch.setenv("UNSTICK_ALERTS__CHANNELS__PAGER__SECRET", "another secret of thirty-two bytes or more")
    monkeypatch.setenv("UNSTICK_ALERTS__CHANNELS__MAIL__APPRISE", "json://elsewhere")
    channels = load_settings().alerts.channels
    assert channels["pager"].secret is not None
    assert [each.get_secret_value() for each in channels["pager"].secret] == [
        "another secret of thirty-two bytes or more"
    ]
    assert channels["mail"].apprise is not None
    assert channels["mail"].apprise.get_secret_value() == "json://elsewhere"
    monkeypatch.setenv("UNSTICK_ALERTS__CHANNELS__PAGER__SECRET", f'["{SECRET}", "{SECRET[::-1]}"]')
    both = load_settings().alerts.channels["pager"].secret
    assert both is not None
    assert [each.get_secret_value() for each in both] == [SECRET, SECRET[::-1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[alerts]\ncooldown = "1h"', "`[alerts] cooldown` is no setting; did you mean `cool_down`?"),
        ('[alerts]\ndigest = { tilte = "x" }', "`[alerts] digest.tilte` is no setting; did you mean `title`?"),
        (
            '[alerts.channels.ops]\nulr = "https://x"',
            "`[alerts.channels.ops] ulr` is no setting; did you mean `url`?",
        ),
        (
            "[alerts.channels.ops]",
            "`[alerts.channels.ops]` must have either `url`, for a webhook, or `apprise`.",
        ),
        (
            '[alerts.channels.ops]\nurl = "https://x"\napprise = "json://x"',
            "`[alerts.channels.ops]` must have either `url`, for a webhook, or `apprise`.",
        ),
        (
            '[alerts.channels.ops]\nurl = "https://x"',
            "`[alerts.channels.ops]` must have `secret` with `url`, for a webhook is signed, and not without it.",
        ),
        (
            '[alerts.channels.ops]\nurl = "https://x"\nsecret = "hunter2"',
            "`[alerts.channels.ops] secret` must have at least 32 bytes: take what `openssl rand -hex 32` prints.",
        ),
        (
            '[alerts.channels.ops]\nurl = "https://x"\nsecret = []',
            "`[alerts.channels.ops] secret` must have at least 32 bytes: take what `openssl rand -hex 32` prints.",
        ),
        (
            f'[alerts.channels.ops]\nurl = "ftp://hunter2"\nsecret = "{SECRET}"',
            "`[alerts.channels.ops] url` must be an http:// or https:// address without a user or password in it.",
        ),
        ('[alerts]\ntitle = ""', "`[alerts] title` must have at least 1 character."),
    ],
)
def test_what_is_wrong_with_alerts_is_told_with_its_place_and_without_a_secret(text: str, said: str) -> None:
    write(text)
    assert complaint() == f"unstick.toml: {said}"


def test_a_channel_has_a_plain_name() -> None:
    write('[alerts.channels."Ops"]\napprise = "json://x"')
    assert complaint().startswith("unstick.toml: `[alerts.channels.Ops]` must be a name of at most 63 lower-case")


# What is said of values that are wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[policy]\naction = "{SECRET}"', "`[policy] action` must be 'mark_failed', 'retry' or 'leave'."),
        (
            "[policy]\nqueued_after = 5",
            "`[policy] queued_after` must be a number and a unit, such as 90s, 5m, 2h or 3d.",
        ),
        ('[policy]\nqueued_after = "0m"', "`[policy] queued_after` must be more than nothing and at most 365d."),
        ('[policy]\nrunning_after = "366d"', "`[policy] running_after` must be more than nothing and at most 365d."),
        ("[policy]\nmax_recoveries = -1", "`[policy] max_recoveries` must be greater than or equal to 0."),
        ("[policy]\nlooks = 0", "`[policy] looks` must be greater than or equal to 1."),
        ("policy = 3", "`[policy]` must be a table."),
        ("sources = {}", "`[sources]` must have at least one entry."),
        ("[sources]\nmain = 3", "`[sources.main]` must be a table."),
        (f'[sources.main]\nurl = ["{SECRET}"]', "`[sources.main] url` must be text."),
        ('[sources.main]\ntable = ""', "`[sources.main] table` must have at least 1 character."),
        ('[sources.main]\ncolumns = ["id"]', "`[sources.main] columns` must be a table."),
        ("[sources.main]\ncolumns = { id = 1 }", "`[sources.main] columns.id` must be text."),
        ('[sources.main]\nstates = "queued"', "`[sources.main] states` must be a table."),
        (
            "[sources.main]\nstates = { queued = 1.5 }",
            "`[sources.main] states.queued` must be a word or a list of words.",
        ),
        ("[sources.main]\nstates = { queued = [1.5] }", "`[sources.main] states.queued` must be text."),
        ("[sources.main]\nstates = { queued = true }", "`[sources.main] states.queued` must be text."),
    ],
)
def test_a_wrong_value_is_one_sentence_without_the_value(text: str, said: str) -> None:
    write(text)
    assert complaint() == f"unstick.toml: {said}"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "../etc/passwd", "/etc/localtime", "", "zone.tab"])
def test_a_time_zone_is_one_that_is_known(zone: str) -> None:
    write(f'[sources.main]\ntimezone = "{zone}"')
    place = "unstick.toml: `[sources.main] timezone`"
    assert complaint() == f"{place} must be an IANA time zone, such as UTC or Europe/Berlin."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("UNSTICK_POLICY__QUEUED_AFTER", "UNSTICK_POLICY__QUEUED_AFTER must be a number and a unit"),
        ("UNSTICK_POLICY__MAX_RECOVERIES", "UNSTICK_POLICY__MAX_RECOVERIES must be a whole number."),
        ("UNSTICK_POLICY", "UNSTICK_POLICY must be a table."),
        ("UNSTICK_SOURCES", "UNSTICK_SOURCES must be a table."),
        ("UNSTICK_SOURCES__MAIN", "UNSTICK_SOURCES__MAIN must be a table."),
        ("UNSTICK_SOURCES__MAIN__COLUMNS", "UNSTICK_SOURCES__MAIN__COLUMNS must be a table."),
    ],
)
def test_a_wrong_variable_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setenv(name, f'{{"{SECRET}')
    assert complaint().startswith(said)
    assert SECRET not in complaint()


def test_a_variable_below_a_setting_that_has_nothing_below_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL__HOST", SECRET)
    assert complaint() == "UNSTICK_SOURCES__MAIN__URL__HOST: `[sources.main] url` must be text."


def test_no_secret_is_in_the_settings_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL", f"postgresql://user:{SECRET}@host/app")
    settings = load_settings()
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"


# Durations


@pytest.mark.parametrize(
    ("said", "meant"),
    [("90s", 90), ("5m", 300), ("2h", 7200), ("3d", 259_200), ("1.5 h", 5400), (timedelta(seconds=7), 7)],
)
def test_a_duration_is_a_number_and_a_unit(said: object, meant: int) -> None:
    assert parse_duration(said) == timedelta(seconds=meant)


@pytest.mark.parametrize(
    "said", ["5", "5 minutes", "-5m", "m", "", "5m ", "\u0665m", "1e3s", "9" * 400 + "d", 5, None, True]
)
def test_nothing_else_is_a_duration(said: object) -> None:
    with pytest.raises(ValueError, match="must be a number and a unit"):
        parse_duration(said)


def test_the_ledger_and_the_brake_can_be_set_by_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSTICK_LEDGER__URL", "sqlite:///ledger.db")
    monkeypatch.setenv("UNSTICK_SWEEP__BRAKE__JOBS", "7")
    monkeypatch.setenv("UNSTICK_POLICY__RULES", '[{"kind": "thesis.*", "running_after": "2h", "action": "retry"}]')
    settings = load_settings()
    assert settings.ledger is not None
    assert settings.ledger.url.get_secret_value() == "sqlite:///ledger.db"
    assert settings.sweep.unattended() == Unattended(brake=BrakeLimits(jobs=7))
    rule = Rule(kind="thesis.*", running_after=timedelta(hours=2), action=Action.RETRY)
    assert settings.policy.policy().rules == (rule,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[policy.rules]]\nkindd = 'x'", "did you mean `kind`?"),
        ("[[policy.rules]]\nkind = 'x'\nrunning_after = '5 apples'", "such as 90s"),
        ("[sweep.brake]\nshare = 2", "sweep"),
        ("[sweep]\nclean_evry = '5m'", "clean_every"),
    ],
)
def test_a_wrong_rule_or_brake_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "unstick.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as told:
        load_settings(file)
    assert "\n" not in str(told.value)
