"""What can go wrong, as types: each message says what happened, where, and what to do next.

UnstickError
├── InvalidRequestError      a threshold, action or cursor that means nothing
├── ConfigurationError       a setting, mapping or table that doesn't fit
│   └── LedgerMissingError   the unstick_* tables are missing or old
├── UnknownJobError          a job that its source doesn't have, and of which nothing is on record
├── NotStuckError            a job that isn't stuck, so that nothing is done to it
├── TooManySnoozesError      a source of which as many jobs are snoozed as may be
├── UnknownPlanError         there is no plan of that id
├── SignInRefusedError       nobody signs in by what was shown
├── TooManyFailuresError     somebody failed to sign in so often that they have to wait
├── UnknownUserError         there is no user of that name
├── UserExistsError          there is a user of that name already
├── UnknownCredentialError   there is no such token or session, or none any more
├── PlanRefusedError         a plan was changed, expired or applied already
├── PendingChangesError      the caller's session holds changes we would commit
├── UnknownRecoveryError     an operation or a job that no recovery is on record of
├── NothingToUndoError       all of it was undone already, or nothing was done
├── SourceUnavailableError   the jobs' database doesn't answer
├── LeadershipLostError      another replica may sweep the source by now
├── LeaseLostError           a job was taken from this worker while it ran
├── NotDeliveredError        a channel couldn't be told of an alert, or nobody knows whether it was
├── LateFinishError          a result came after its job had been taken; it was refused
└── RecoveryStoppedError     a batch was rolled back; what was committed before it stays
"""

from datetime import timedelta
from math import ceil

from unstick.domain.wording import Phrase


class UnstickError(Exception):
    """The base of every error Unstick raises on purpose."""


class InvalidRequestError(UnstickError, ValueError):
    """A threshold, action or cursor that means nothing; nothing was changed."""


class ConfigurationError(UnstickError):
    """A setting, mapping or table that doesn't fit."""


class LedgerMissingError(ConfigurationError):
    """Unstick's own tables are missing or behind; the message prints the command that makes them."""


class UnknownJobError(UnstickError):
    """A job that its source doesn't have; nothing was changed."""


class NotStuckError(UnstickError):
    """A job that isn't stuck; the message says why not, and nothing was changed."""


class TooManySnoozesError(UnstickError):
    """As many jobs of a source are snoozed as may be; end a snooze first."""


class UnknownPlanError(UnstickError):
    """There is no plan of that id, or none any more."""


class SignInRefusedError(UnstickError):
    """Nobody signs in by what was shown; the message doesn't say whether the name or the password was wrong."""


class TooManyFailuresError(UnstickError):
    """Somebody failed to sign in so often that they have to wait.

    Args:
        retry_after: for how long.
    """

    def __init__(self, retry_after: timedelta) -> None:
        self.seconds = max(1, ceil(retry_after.total_seconds()))
        super().__init__(Phrase("Signing in failed too often; try again in %(seconds)s s.", seconds=self.seconds))


class UnknownUserError(UnstickError):
    """There is no user of that name; nothing was changed."""


class UserExistsError(UnstickError):
    """There is a user of that name already; nothing was changed."""


class UnknownCredentialError(UnstickError):
    """There is no token or session of that id, or none any more; nothing was changed."""


class PlanRefusedError(UnstickError):
    """A plan can't be applied: it was changed since it was made, expired, or was applied already."""


class PendingChangesError(UnstickError):
    """The session holds changes of the caller's that a commit of ours would commit with it."""


class UnknownRecoveryError(UnstickError):
    """An operation or a job of which no recovery is on record; nothing was changed."""


class NothingToUndoError(UnstickError):
    """All that was asked to be undone was undone already, or had changed nothing; nothing was changed."""


class SourceUnavailableError(UnstickError):
    """The jobs' database doesn't answer, or answers with an error that no job of it caused."""


class LeadershipLostError(UnstickError):
    """This process leads a source no more; another may sweep it by now."""


class LeaseLostError(UnstickError):
    """A job was taken from this worker while it ran: another attempt may be under way, so stop at once."""


class LateFinishError(UnstickError):
    """A result came after its job had been taken from this worker; it was refused and recorded as late."""


class NotDeliveredError(UnstickError):
    """A channel couldn't be told of an alert; the message says why, without a secret of the channel's.

    Args:
        message: what went wrong.
        retry_after: how long the receiver wants to be left alone, where it said so.
        may_have_arrived: nobody knows whether it was told all the same.
        others_too: another message would fail for the same cause.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: timedelta | None = None,
        may_have_arrived: bool = False,
        others_too: bool = True,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.may_have_arrived = may_have_arrived
        self.others_too = others_too


class RecoveryStoppedError(UnstickError):
    """A batch failed and was rolled back whole; `recovered` jobs of earlier batches stay recovered and recorded."""

    def __init__(self, message: str, *, recovered: int) -> None:
        super().__init__(message)
        self.recovered = recovered
