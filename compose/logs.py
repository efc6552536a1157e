"""Log set-up: structured lines on stderr, plain by default, JSON by setting. Secrets are never passed to a logger."""

from __future__ import annotations

import logging
import sys

import structlog

from compose.settings import Settings


def set_up_logs(settings: Settings) -> None:
    """Route structlog and the libraries' own loggers to stderr at the set level."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info if settings.log_json else _keep, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # The libraries say a lot at info that is of no use to an operator.
    logging.basicConfig(
        stream=sys.stderr, level=max(level, logging.WARNING), format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )

    if level > logging.DEBUG:
        # What goes wrong there reaches us as an exception, and is said once, with what to do.
        for name in ("aiokafka", "clickhouse_connect", "faust", "mode", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _keep(logger: object, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
