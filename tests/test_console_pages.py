"""Pages as a browser gets them: who may see them, under which prefix, and what they let run."""

import re

import httpx
import pytest
from fastapi import FastAPI

from tests.api_support import World, client
from unstick.console.router import console_router
from unstick.domain.access import Principal, Role


async def ada() -> Principal:
    return Principal(name="ada", role=Role.ADMIN)


def host(world: World, prefix: str = "") -> FastAPI:
    """Return a host's app with the console in it."""
    app = FastAPI()
    app.include_router(console_router(watched={"main": world.open}, principal=ada), prefix=prefix)
    return app


@pytest.mark.parametrize(("prefix", "root_path"), [("", ""), ("/staff/jobs", ""), ("/staff", "/behind/a/proxy")])
async def test_every_link_of_a_page_keeps_the_prefix_it_is_mounted_under(prefix: str, root_path: str) -> None:
    transport = httpx.ASGITransport(host(World(), prefix), root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://unstick.test") as caller:
        page = await caller.get(f"{root_path}{prefix}/console/")
    assert page.status_code == 200, page.text
    links = re.findall(r'(?:href|src|action)="([^"#]+)"', page.text)
    assert links
    assert [link for link in links if not link.startswith(f"{root_path}{prefix}/console/")] == []


async def test_a_page_lets_nothing_run_but_its_own_files_and_they_are_kept_by_browsers() -> None:
    async with client(host(World())) as caller:
        page = await caller.get("/console/")
        files = [await caller.get(name) for name in re.findall(r'(?:href|src)="([^"]+/static/[^"]+)"', page.text)]
    assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert {file.headers["content-type"].partition(";")[0] for file in files} == {
        "text/css",
        "text/javascript",
        "image/svg+xml",
    }
    assert all("immutable" in file.headers["cache-control"] for file in files)
