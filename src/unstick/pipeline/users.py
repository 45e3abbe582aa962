"""Users, who sign in by a password: added, listed and removed, each in the audit log."""

from collections.abc import Sequence

from unstick.domain.access import Role, User, requested_name, requested_password
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import UnknownUserError, UserExistsError
from unstick.pipeline.signing_in import access_of
from unstick.pipeline.watched import Watched

ADD_USER_CALL = "users.add"
REMOVE_USER_CALL = "users.remove"


async def add_user(watched: Watched, name: str, role: Role, password: str, *, by: str) -> None:
    """Add somebody who signs in by a password.

    Raises:
        InvalidRequestError: the name can't be one, or the password is too short.
        UserExistsError: there is a user of that name already.
    """
    access = access_of(watched)
    name, password = requested_name(name), requested_password(password)
    entry = _entry(by, ADD_USER_CALL, {"name": name, "role": role.value})
    kept = await access.passwords.hash(password)
    if not await access.users.add(name, role, kept, entry):
        raise UserExistsError(f"There is a user {name!r} already; remove it first: unstick user remove {name}.")


async def list_users(watched: Watched) -> Sequence[User]:
    """Return the users by name."""
    return await access_of(watched).users.all()


async def remove_user(watched: Watched, name: str, *, by: str) -> None:
    """Remove a user, and end all sessions of that name.

    Raises:
        UnknownUserError: there is none of that name.
    """
    if not await access_of(watched).users.remove(name, _entry(by, REMOVE_USER_CALL, {"name": name})):
        raise UnknownUserError(f"There is no user {name!r}.")


def _entry(by: str, call: str, parameters: dict[str, object]) -> AuditEntry:
    return AuditEntry(actor=by, call=call, outcome=AuditOutcome.DONE, parameters=parameters)
