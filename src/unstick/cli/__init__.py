"""The `unstick` command: exit codes are 0 ok, 1 stuck jobs found (`stuck` only), 2 error, 130 and 143 stopped."""

import contextlib
import sys
import traceback
from typing import NoReturn

from unstick.cli.app import app
from unstick.cli.output import complain
from unstick.domain.errors import UnstickError

_ERROR = 2


def main() -> NoReturn:
    """Run the command line; what goes wrong on purpose is one sentence, anything else a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="unstick")
    except UnstickError as error:
        complain(str(error))
    except Exception:  # noqa: BLE001 - Python's own status for it is 1, which says that stuck jobs were found
        with contextlib.suppress(OSError):
            traceback.print_exc()
    sys.exit(_ERROR)
