"""Finds background jobs that will never finish, says why, and recovers them without touching one that is alive.

In a FastAPI app of your own, with your own jobs table:

    from unstick import AdminService, JobTable, configure

    configure(jobs=JobTable.from_model(AIGenerationJob))

    async with AsyncSessionLocal() as db:
        await AdminService(db).cleanup_stuck_jobs()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unstick.admin import AdminService, admin_router, console_router
    from unstick.domain.access import Principal, Role
    from unstick.domain.errors import LateFinishError, LeaseLostError
    from unstick.domain.policy import Policy
    from unstick.domain.recovery import Action
    from unstick.domain.work import ClaimedJob
    from unstick.hosting import configure
    from unstick.kit import enqueue, open_worker, running
    from unstick.sql.mapping import JobTable
    from unstick.worker import Heartbeat, Registry

__version__ = "0.1.0"

__all__ = [
    "Action",
    "AdminService",
    "ClaimedJob",
    "Heartbeat",
    "JobTable",
    "LateFinishError",
    "LeaseLostError",
    "Policy",
    "Principal",
    "Registry",
    "Role",
    "admin_router",
    "configure",
    "console_router",
    "enqueue",
    "health_router",
    "open_worker",
    "running",
]

_HOMES = {
    "Action": "unstick.domain.recovery",
    "AdminService": "unstick.admin",
    "ClaimedJob": "unstick.domain.work",
    "Heartbeat": "unstick.worker",
    "JobTable": "unstick.sql.mapping",
    "LateFinishError": "unstick.domain.errors",
    "LeaseLostError": "unstick.domain.errors",
    "Policy": "unstick.domain.policy",
    "Principal": "unstick.domain.access",
    "Registry": "unstick.worker",
    "Role": "unstick.domain.access",
    "admin_router": "unstick.admin",
    "configure": "unstick.hosting",
    "console_router": "unstick.admin",
    "enqueue": "unstick.kit",
    "health_router": "unstick.admin",
    "open_worker": "unstick.kit",
    "running": "unstick.kit",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names are loaded when first used, so that importing stays light
    if name not in _HOMES:
        raise AttributeError(f"module 'unstick' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_HOMES[name]), name)
