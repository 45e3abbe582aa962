"""Change the code in one place at a time and see whether a test notices: `make mutants`, with mutmut.

What is changed and which tests are asked is said in `pyproject.toml`, under `tool.mutmut`. Its own summary counts;
`.venv/bin/mutmut show NAME` prints one change, and NAME as an argument, which may hold `*`, tries only that again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import SHARED_SERVERS, Servers


def main() -> int:
    programs = Path(sys.executable).parent
    # Each change is tried in a process of its own, which would start servers of its own.
    with Servers.for_this_run() as servers:
        environment = os.environ | {SHARED_SERVERS: str(servers.run), "PATH": f"{programs}:{os.environ['PATH']}"}
        ran = subprocess.run([programs / "mutmut", "run", *sys.argv[1:]], env=environment, check=False).returncode
    if ran == 0:
        subprocess.run([programs / "mutmut", "results"], check=True)
    return ran


if __name__ == "__main__":
    sys.exit(main())
