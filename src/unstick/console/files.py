"""`/static/{name}`: the console's own files. Their names change with what is in them, so browsers keep them."""

from fastapi import APIRouter, HTTPException, Response

from unstick.console.assets import by_hashed_name

_KEPT = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


async def send_file(name: str) -> Response:
    """Send a file."""
    asset = by_hashed_name().get(name)
    if asset is None:
        raise HTTPException(404)
    return Response(asset.content, media_type=asset.media_type, headers=_KEPT)


def add_files(router: APIRouter) -> None:
    """Add the call to a router; whoever may see nothing else may see these."""
    router.add_api_route("/static/{name}", send_file, name="console.asset")
