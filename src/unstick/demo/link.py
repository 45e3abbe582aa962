"""`python -m unstick.demo.link` prints the path of a link that signs an administrator in to the console, once."""

import asyncio
import sys

from unstick.config import load_settings
from unstick.domain.access import Principal, Role
from unstick.wiring import make_sign_in_path

if __name__ == "__main__":
    sys.stdout.write(asyncio.run(make_sign_in_path(load_settings(), Principal(name="demo", role=Role.ADMIN))))
