"""The service's log: for a person where one looks, else a JSON object a line."""

import logging
import sys

import structlog
from structlog.typing import Processor

from unstick.cli.output import is_watched


def configure_logging() -> None:
    """Send every logger's records to stderr in one form, the libraries' too."""
    interactive = is_watched(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(interactive)],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _rendering(interactive: bool) -> list[Processor]:
    if interactive:
        # The richer formatter prints local variables, and with them secrets.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
