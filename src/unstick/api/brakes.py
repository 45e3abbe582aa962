"""`/brake`: what holds unattended sweeps of a source, and its release."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, params
from typing_extensions import TypedDict

from unstick.api.call import CurrentCall
from unstick.api.parameters import SourceQuery, no_body, no_repeats
from unstick.api.problems import RefusedError
from unstick.domain.access import Role
from unstick.pipeline.braking import release_brake, show_brake
from unstick.pipeline.shapes import BrakeShape, brake_shape


class BrakeAnswer(TypedDict):
    """The brake of a source, null where none holds it or did since its last sweep."""

    brake: BrakeShape | None


async def find_brake(call: CurrentCall, query: Annotated[SourceQuery, Query()]) -> BrakeAnswer:
    """Tell whether a brake holds unattended sweeps, since when, and what seems to have happened."""
    async with call.open(query.source) as watched:
        brake = await show_brake(watched)
    return {"brake": None if brake is None else brake_shape(brake)}


async def release(call: CurrentCall, query: Annotated[SourceQuery, Query()]) -> BrakeAnswer:
    """Release the brake: the next unattended sweep may recover as many jobs as it was held from."""
    async with call.open(query.source) as watched:
        brake = await release_brake(watched, call.actor)
        if brake is None:
            raise RefusedError(409, f"No brake holds source {watched.source.name!r}.")
    call.result["suspects"] = brake.suspects
    return {"brake": brake_shape(brake)}


def add_brakes(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    router.add_api_route(
        "/brake",
        find_brake,
        name="brake.show",
        operation_id="find_brake",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
    router.add_api_route(
        "/brake/release",
        release,
        methods=["POST"],
        name="brake.release",
        operation_id="release_brake",
        dependencies=[needs(Role.ADMIN), Depends(no_repeats), Depends(no_body)],
    )
