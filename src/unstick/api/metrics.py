"""`/metrics`: what Prometheus scrapes; no call of the admin API: none of its roles, and no row in the audit log."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder
from pydantic import SecretStr

from unstick.api.problems import RefusedError
from unstick.telemetry.metrics import Metrics
from unstick.telemetry.scraping import bears

PATH = "/metrics"


def metrics_router(metrics: Metrics, token: SecretStr | None = None) -> APIRouter:
    """Return the router; with a token, a scrape must bear it."""
    router = APIRouter(include_in_schema=False)

    @router.get(PATH)
    async def scrape(
        accept: Annotated[str, Header()] = "", authorization: Annotated[str | None, Header()] = None
    ) -> Response:
        if token is not None and not bears(authorization, token):
            raise RefusedError(401, "Send the token that `[metrics] token` says: `Authorization: Bearer <token>`.")
        encode, media_type = choose_encoder(accept)
        return Response(encode(metrics.registry), headers={"Content-Type": media_type})

    return router
