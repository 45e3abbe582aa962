"""`unstick demo`: the demo platform and its driver."""

import os
import sys
from typing import Annotated

import typer


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Go once from stuck to finished; exit 0 only if that was seen.")
    ] = False,
) -> None:
    """Run a platform whose jobs get stuck, with Unstick beside it."""
    arguments = ["--once"] if once else []
    os.execv(sys.executable, [sys.executable, "-m", "unstick.demo", *arguments])  # noqa: S606 - our own module
