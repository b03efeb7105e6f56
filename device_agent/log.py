"""Structured log lines: an event name and `key=value` fields, on stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import TextIO

#: Tokens and enrolment codes look like this. No call passes one to the log; this catches a text of a peer that does.
_SECRET = re.compile(r"\bkerf_[a-z]_[A-Za-z0-9_-]+")
_BARE = re.compile(r"[A-Za-z0-9_.:/+-]+")

#: Fields of every line of this process. An agent process serves one device.
_bound: dict[str, object] = {}


def bind_fields(**fields: object) -> None:
    """Add fields such as device_id to every line from now on."""
    _bound.update(fields)


def log_event(logger: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Log `event` with fields such as task_id, kernel_id, device_id. Fields that are None are left out."""
    logger.log(level, event, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


class LogfmtFormatter(logging.Formatter):
    """`2026-11-21T16:00:00Z level=info logger=device_agent.agent event=task_measured task_id=...` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields: dict[str, object] = {
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_bound,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return f"{moment} " + " ".join(f"{name}={_text(value)}" for name, value in fields.items())


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream` (stderr). `level` is a name such as "info"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # httpx logs every request at INFO: a line for each long poll says nothing.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _text(value: object) -> str:
    text = _SECRET.sub("[secret]", f"{value:.6g}" if isinstance(value, float) else str(value))
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
