"""One call of ours while it is being answered: who asks, what was admitted, and what the audit log will say."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, cast

from fastapi import Depends, Request

from unstick.api.problems import RefusedError
from unstick.api.sources import Sources
from unstick.api.together import Together
from unstick.api.words import said, said_pairs
from unstick.domain.access import Principal, Role
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import ConfigurationError, InvalidRequestError
from unstick.domain.wording import Phrase
from unstick.pipeline.watched import Watched

_ANONYMOUS = "anonymous"
_LONGEST_ROLE = 32
_LONGEST_ID = 1024
_SCOPE_KEY = "unstick.call"
_READ_ONLY = Phrase("Unstick is read-only here (`read_only` in its settings): it shows what is, and changes nothing.")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Call:
    """A call from its arrival to its record."""

    def __init__(self, name: str, request: Request, sources: Sources, together: Together) -> None:
        self._name = name
        self._request = request
        self._sources = sources
        self.together = together
        """Finds one answer for all who ask the same at the same time."""
        self._actor: str | None = None
        self._role: str | None = None
        self._admitted: Principal | None = None
        self.read_only = False
        """Nothing may be changed by anybody here, whatever their role."""
        self.swept = False
        """An operation that changes jobs was started, and writes the record of its beginning and end itself."""
        self.result: dict[str, object] = {}
        """What the record tells of what came of it, besides the status."""
        request.scope[_SCOPE_KEY] = self

    @property
    def request(self) -> Request:
        """The request itself."""
        return self._request

    @property
    def name(self) -> str:
        """What was asked for, as the audit log names it."""
        return self._name

    @property
    def sources(self) -> Sources:
        """The sources that can be named."""
        return self._sources

    @property
    def actor(self) -> str:
        """Who asks, as the audit log names them."""
        return self._actor or _ANONYMOUS

    @property
    def role(self) -> str | None:
        """As what they ask."""
        return self._role

    @property
    def is_known(self) -> bool:
        """Whether anybody was authenticated."""
        return self._actor is not None

    @property
    def principal(self) -> Principal:
        """Whoever was let in."""
        if self._admitted is None:
            raise RuntimeError(f"The call {self._name} is answered without having let anybody in.")
        return self._admitted

    def may(self, needed: Role) -> bool:
        """Tell whether whoever was let in could also make a call that needs this role."""
        return self._admitted is not None and self._admitted.role.allows(needed)

    def admit(self, caller: object, needed: Role) -> None:
        """Let a caller in, or refuse them."""
        if not isinstance(caller, Principal):
            raise ConfigurationError(
                f"The principal dependency must return unstick.Principal, not {type(caller).__name__}."
            )
        self.name_caller(caller.name, caller.role)
        if not Role(caller.role).allows(needed):
            raise RefusedError(
                403,
                Phrase("This call needs the role %(needed)s; %(role)s is not enough.", needed=needed, role=caller.role),
            )
        if self.read_only and self._request.method not in SAFE_METHODS:
            raise RefusedError(403, _READ_ONLY)
        if any("\0" in value for value in self._sent()):
            raise InvalidRequestError("A parameter holds a NUL character, which no job, kind or queue has.")
        self._admitted = caller

    def _sent(self) -> Iterator[str]:
        """Everything that the address says."""
        yield from map(str, self._request.path_params.values())
        yield from (value for _, value in self._request.query_params.multi_items())

    def name_caller(self, actor: str | None, role: str | None) -> None:
        """Keep who asks, so far as it is known."""
        if actor is not None:
            self._actor = said(actor)
            self._role = None if role is None else said(role, _LONGEST_ROLE)

    def open(self, source: str | None) -> AbstractAsyncContextManager[Watched]:
        """Open the source the caller named."""
        return self._sources.named(source)()

    async def record(self, outcome: AuditOutcome, result: Mapping[str, object]) -> None:
        """Write the call to the audit log; only what changed nothing may share a row."""
        source, job_id = self._job()
        entry = AuditEntry(
            actor=self.actor,
            role=self.role,
            call=self._name,
            outcome=outcome,
            parameters=self._parameters(),
            result=result,
            source=source,
            job_id=job_id,
        )
        named = self._request.path_params.get("source")
        names = self._request.query_params.getlist("source") if named is None else [named]
        meant = self._sources.meant_by(names)
        if self._request.method != "GET":
            async with meant() as watched:
                await watched.ledger.append(entry)
            return

        async def count(times: int) -> None:
            async with meant() as watched:
                await watched.ledger.count_read(entry, times)

        await self.together.get((meant, repr(entry)), count)

    def _job(self) -> tuple[str | None, str | None]:
        """Name the job a call is about, if it is one job and the caller was let in: nobody else writes its story."""
        named = self._request.path_params
        if self._admitted is None or "job_id" not in named or named.get("source") not in self._sources:
            return None, None
        return named["source"], said(named["job_id"], _LONGEST_ID)

    def _parameters(self) -> dict[str, object]:
        pairs = [*self._request.path_params.items(), *self._request.query_params.multi_items()]
        parameters = said_pairs((key, str(value)) for key, value in pairs)
        if not self.is_known:
            client = self._request.client
            parameters["client_address"] = "unknown" if client is None else said(client.host)
        return parameters


def call_of(request: Request) -> Call | None:
    """Return the call that a request is, None where it is none that is recorded."""
    return cast("Call | None", request.scope.get(_SCOPE_KEY))


async def _current_call(request: Request) -> Call:
    return cast("Call", request.scope[_SCOPE_KEY])


CurrentCall = Annotated[Call, Depends(_current_call)]
