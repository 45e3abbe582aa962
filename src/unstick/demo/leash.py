"""`python -m unstick.demo.leash MODULE [ARGUMENT…]` runs a module that can't outlive whoever started it.

The starter holds the other end of standard input. When it ends, however it ends, the kernel closes that end, and the
leash pulls. This works on every POSIX system and whichever thread started the process; Linux's parent-death signal
does neither.
"""

import os
import runpy
import sys
from threading import Thread


def main() -> None:
    """Run the module named on the command line, on a leash."""
    Thread(target=_end_with_starter, name="leash", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)  # the starter is gone, and with it whoever could wait for a tidy end


if __name__ == "__main__":
    main()
