"""The demo platform and Unstick's service, set up side by side in a scratch folder."""

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape

from unstick.demo.children import Child, run
from unstick.demo.faces import HOST, Platform, Service
from unstick.demo.records import Records
from unstick.demo.settings import BACKGROUND_TASKS_VARIABLE, URL_VARIABLE
from unstick.demo.watch import Watch

_SETTINGS = """\
[sources.main]
url = {url}
table = "ai_generation_jobs"
columns = {{ id = "id", state = "status", kind = "job_type", enqueued_at = "created_at", \
scheduled_at = "scheduled_at", started_at = "started_at", heartbeat_at = "updated_at", \
completed_at = "completed_at", success = "success", error = "error_message", attempt = "attempt", \
worker = "worker", token = "fencing_token", key = "idempotency_key", progress = "progress", \
tokens = "tokens_used", cost = "cost" }}
states = {{ queued = "queued", running = "running", succeeded = "completed", failed = "failed", \
cancelled = "cancelled" }}

[policy]
queued_after = "3s"
running_after = "3s"
retry_backoff = "1s"
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a story of the demo plays on."""

    platform: Platform
    background_tasks: Child
    """The platform's process while its jobs run in background tasks."""
    kit: Child
    """Its process once they run on the kit; not started yet."""
    service: Service
    records: Records
    watch: Watch
    console: Console
    folder: Path
    environment: Mapping[str, str]

    def say(self, text: str) -> None:
        """Tell what happened, and when."""
        self.console.print(f"[dim]{self.watch.elapsed:5.1f} s[/dim]  {escape(text)}", highlight=False, soft_wrap=True)

    def sign_in_link(self) -> str:
        """Make a link that opens the console as an administrator, once and within ten minutes."""
        return self.service.url + run(["unstick.demo.link"], self.folder, self.environment)

    def deaf_worker(self, job_id: int) -> Child:
        """Return a worker for this job alone, not started yet."""
        return Child("worker", ["unstick.demo.deaf_worker", str(job_id)], self.folder, self.environment)


@contextmanager
def set_up(console: Console, watch: Watch, port_base: int | None) -> Iterator[Scene]:
    """Start both programs and wait until they answer; at the end stop them and remove what they wrote."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="unstick-demo-", ignore_cleanup_errors=True)))
        database = folder / "platform.db"
        (folder / "unstick.toml").write_text(_SETTINGS.format(url=json.dumps(f"sqlite:///{database}")))
        environment = _environment(f"sqlite+aiosqlite:///{database}")
        service_port, platform_port = _ports(port_base)
        platform = Platform(platform_port)
        background_tasks = _platform(platform_port, folder, environment, in_background_tasks=True)
        kit = _platform(platform_port, folder, environment)
        for child in (background_tasks, kit):
            stack.callback(child.stop)
            watch.guard(child)
        background_tasks.start()
        watch.until("the platform answers", platform.newest)
        run(["unstick", "db", "upgrade"], folder, environment)
        token = run(["unstick", "token", "sign", "--role", "admin"], folder, environment)
        service = Service(service_port, token)
        watch.guard(stack.enter_context(_service(service_port, folder, environment)))
        watch.until("the service answers", service.stuck)
        yield Scene(
            platform=platform,
            background_tasks=background_tasks,
            kit=kit,
            service=service,
            records=Records(database),
            watch=watch,
            console=console,
            folder=folder,
            environment=environment,
        )


def _platform(port: int, folder: Path, environment: Mapping[str, str], *, in_background_tasks: bool = False) -> Child:
    serve = ["uvicorn", "--factory", "unstick.demo.platform:create_app", "--host", HOST, "--port", str(port)]
    way = {BACKGROUND_TASKS_VARIABLE: "1" if in_background_tasks else "0"}
    # A stopping server waits for background tasks; this one is given a second.
    serve += ["--timeout-graceful-shutdown", "1", "--no-access-log"]
    return Child("platform", serve, folder, {**environment, **way})


def _service(port: int, folder: Path, environment: Mapping[str, str]) -> Child:
    return Child("service", ["unstick", "serve", "--host", HOST, "--port", str(port)], folder, environment)


def _environment(database: str) -> dict[str, str]:
    """Return our environment without the user's settings of Unstick, which are for other tables than this one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    return {**ours, URL_VARIABLE: database, "UNSTICK_SECRET_KEY": secrets.token_urlsafe(48)}


def _ports(base: int | None) -> tuple[int, int]:
    if base is not None:
        return base, base + 1
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
