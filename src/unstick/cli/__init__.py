"""The `unstick` command: exit codes are 0 ok, 1 stuck jobs found (`stuck` only), 2 error, 130 and 143 stopped."""

import contextlib
import sys
import traceback
from typing import NoReturn

from unstick.cli.output import complain
from unstick.domain.errors import UnstickError

_ERROR = 2
_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line; what goes wrong on purpose is one sentence, anything else a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from unstick.cli.app import app  # noqa: PLC0415 - it takes a moment, in which somebody may press Ctrl-C

        app(prog_name="unstick")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except UnstickError as error:
        complain(str(error))
    except Exception as error:  # noqa: BLE001 - Python's own status for it is 1, which says that stuck jobs were found
        _tell(error)
    sys.exit(_ERROR)


def _tell(error: Exception) -> None:
    """Say what a database refused in one sentence; anything else that nobody foresaw is a traceback."""
    from unstick.wiring import said_of_refusal  # noqa: PLC0415 - it takes a moment

    sentence = said_of_refusal(error)
    if sentence is not None:
        complain(sentence)
        return
    with contextlib.suppress(OSError):
        traceback.print_exc()
