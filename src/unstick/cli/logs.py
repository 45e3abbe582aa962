"""The service's log: for a person where one looks, else a JSON object a line."""

import logging
import sys

import structlog
from structlog.typing import Processor

from unstick.cli.output import is_watched
from unstick.console.sign_in import LINK_PATH


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
    logging.getLogger("uvicorn.access").addFilter(_without_links)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _without_links(record: logging.LogRecord) -> bool:
    """Cut the secret of a sign-in link out of the line of its request: the log outlives the ten minutes."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            each.partition("?")[0] if isinstance(each, str) and LINK_PATH in each else each for each in record.args
        )
    return True


def _rendering(interactive: bool) -> list[Processor]:
    if interactive:
        # The richer formatter prints local variables, and with them secrets.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
