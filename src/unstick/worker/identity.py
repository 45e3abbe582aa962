"""Who this process is."""

import os
import secrets
import socket

from unstick.domain.work import WorkerIdentity


def this_process() -> WorkerIdentity:
    """Return a new identity for this process: whoever restarts with its host and number gets another one."""
    return WorkerIdentity(host=socket.gethostname()[:200], pid=os.getpid(), boot_id=secrets.token_hex(4))
