"""`/tokens`: tokens for programs, which administrators make and revoke."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, params
from pydantic import BaseModel, ConfigDict, Field

from unstick.api.call import CurrentCall
from unstick.api.parameters import NO_NUL, TokenDays, no_body, no_repeats
from unstick.domain.access import LONGEST_NAME, TOKEN_LASTS, Role
from unstick.pipeline.credential_shapes import (
    MadeTokenShape,
    RevokedTokenShape,
    TokensShape,
    made_token_shape,
    tokens_shape,
)
from unstick.pipeline.credentials import (
    MAKE_TOKEN_CALL,
    REVOKE_TOKEN_CALL,
    TOKENS_CALL,
    TokenOrder,
    living_tokens,
    make_token,
    revoke_token,
)

TokenId = Annotated[str, Path(description="The token's id, which is no secret.", pattern="^[0-9a-f]{16}$")]


class NoQuery(BaseModel):
    """What calls take that take nothing."""

    model_config = ConfigDict(extra="forbid")


class TokenQuery(NoQuery):
    """What `POST /tokens` takes."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=NO_NUL)] = Field(
        description="What its bearer is called in the audit log, after `token:`."
    )
    role: Role = Field(description="What its bearer may do.")
    days: TokenDays = Field(default=TOKEN_LASTS.days, description="How long it is good for.")


async def list_tokens(call: CurrentCall, _query: Annotated[NoQuery, Query()]) -> TokensShape:
    """List the tokens that haven't expired, the newest first."""
    async with call.open(None) as watched:
        return tokens_shape(await living_tokens(watched))


async def make_a_token(call: CurrentCall, query: Annotated[TokenQuery, Query()]) -> MadeTokenShape:
    """Make a token. What its bearer sends is in this answer and nowhere else."""
    order = TokenOrder(
        actor=call.actor, role=call.role, name=query.name, scope=query.role, lasting=timedelta(days=query.days)
    )
    async with call.open(None) as watched:
        shape = made_token_shape(*await make_token(watched, order))
        call.swept = True
    return shape


async def revoke_a_token(
    call: CurrentCall, token_id: TokenId, _query: Annotated[NoQuery, Query()]
) -> RevokedTokenShape:
    """Revoke a token: it opens nothing from now on, and the sessions it opened are over."""
    async with call.open(None) as watched:
        await revoke_token(watched, call.principal, token_id)
        call.swept = True
    return RevokedTokenShape(id=token_id, revoked=True)


def add_tokens(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    router.add_api_route(
        "/tokens",
        list_tokens,
        name=TOKENS_CALL,
        operation_id="list_tokens",
        dependencies=[needs(Role.ADMIN), Depends(no_repeats)],
    )
    router.add_api_route(
        "/tokens",
        make_a_token,
        methods=["POST"],
        name=MAKE_TOKEN_CALL,
        operation_id="make_token",
        dependencies=[needs(Role.ADMIN), Depends(no_repeats), Depends(no_body)],
    )
    router.add_api_route(
        "/tokens/{token_id}",
        revoke_a_token,
        methods=["DELETE"],
        name=REVOKE_TOKEN_CALL,
        operation_id="revoke_token",
        dependencies=[needs(Role.ADMIN), Depends(no_repeats), Depends(no_body)],
    )
