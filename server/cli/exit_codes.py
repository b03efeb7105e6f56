"""What each exit code of `kerf` means."""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy.exc import SQLAlchemyError

from device_agent.contracts import ContractError
from kerf import ApiError, DamagedDownload, KerfError, SearchEnded, ServerUnavailable
from server.backup import BackupError
from server.cli.config_file import ConfigFileError
from server.cli.doctor import SomethingIsBroken
from server.cli.export import ExportError
from server.cli.local_stack import StackError
from server.database import NewerSchema
from server.schema import NoDatabase


class ExitCode(IntEnum):
    DONE = 0
    CRASHED = 1
    BAD_INPUT = 2
    SEARCH_ENDED = 3
    UNAVAILABLE = 4
    BROKEN = 5
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.CRASHED: "a fault in Kerf itself, with a traceback",
    ExitCode.BAD_INPUT: "bad input: an argument, a config, a file or a token; or the server refused the request",
    ExitCode.SEARCH_ENDED: "the search failed or was cancelled",
    ExitCode.UNAVAILABLE: "the server, its database or a local process is not available or failed",
    ExitCode.BROKEN: "`kerf doctor` or `kerf db check` found something that is broken",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}

#: Errors that a user can act on: they become one line and a code.
EXPECTED = (
    KerfError,
    ConfigFileError,
    ContractError,
    ExportError,
    StackError,
    SQLAlchemyError,
    SomethingIsBroken,
    BackupError,
    NewerSchema,
    NoDatabase,
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The code of one of `EXPECTED`."""
    if isinstance(error, SearchEnded):
        return ExitCode.SEARCH_ENDED
    if isinstance(error, SomethingIsBroken):
        return ExitCode.BROKEN
    if isinstance(error, StackError | ServerUnavailable | DamagedDownload | SQLAlchemyError | NoDatabase):
        return ExitCode.UNAVAILABLE
    if isinstance(error, ApiError) and error.status >= 500:
        return ExitCode.UNAVAILABLE
    return ExitCode.BAD_INPUT
