"""Log lines of server and worker: one line an event, as text or JSON, with plain tracebacks."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TextIO, cast

import structlog


class LossyStream:
    """A stream whose lines may get lost: a full disk under the log must not fail what is being logged."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure_logging(*, as_json: bool) -> None:
    """Set up structlog for this process.

    Tracebacks are plain: structlog's default prints all local variables, which takes seconds, and they may hold tokens.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        shared.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        )
    if as_json:
        _tell_libraries(shared)
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, LossyStream(sys.stderr))),
        cache_logger_on_first_use=False,
    )


class _LibraryLines(logging.StreamHandler[TextIO]):
    """What libraries log, in the form of our own lines."""


def _tell_libraries(processors: Sequence[structlog.typing.Processor]) -> None:
    """Have warnings of libraries, uvicorn's among them, written as JSON lines: one that is none breaks readers."""
    handler = _LibraryLines(cast(TextIO, LossyStream(sys.stderr)))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors[:-2],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors[-2:]],
        )
    )
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h, _LibraryLines)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    uvicorn = logging.getLogger("uvicorn")
    # It sets up its own before it makes the application.
    uvicorn.handlers.clear()
    uvicorn.propagate = True
