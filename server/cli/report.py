"""`kerf search report`: a finished search as one HTML file, with its front as pictures beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from device_agent.contracts import ContractError, decode
from kerf import NotFound
from search.domain.result import SearchResult
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, tell
from server.cli.output import RESULT_FILE

#: Sharp in print at the size of a page.
_PRINT_DPI = 300


def report(
    search: Annotated[
        str,
        typer.Argument(help="A search on the server; or, without one, its result.json or the folder that holds it."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("report.html"),
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished search as one self-contained HTML file, and its front as SVG and PNG beside it."""
    data = _result(search, server, token)
    # matplotlib takes a second to import; only this command and those that write a front need it.
    from search.plot import ImageFormat, plot_front
    from server.dashboard.report import render_report

    try:
        html = render_report(data)
        result = decode(SearchResult, data)
    except (ContractError, KeyError) as error:
        raise ConfigFileError(f"{search}: this is no result of a search: {error}") from None
    pictures = [
        (output.with_name(f"{output.stem}-front.{kind.value}"), plot_front(result, kind, dots_per_inch=_PRINT_DPI))
        for kind in ImageFormat
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, image in pictures:
        path.write_bytes(image)
    output.write_text(html, encoding="utf-8")
    written = [str(output), *(str(path) for path, _ in pictures)]
    tell(f"written: {', '.join(written)}", {"files": written}, as_json=as_json)


def _result(search: str, server: str | None, token: str | None) -> dict[str, Any]:
    """The result as JSON. Raises `ConfigFileError` where the file cannot be read."""
    path = Path(search)
    if not path.exists():
        with connect(server, token) as client:
            try:
                return client.searches.result(search)
            except NotFound as error:
                if error.code == "not_ready":
                    raise
                raise ConfigFileError(
                    f"{search!r} is neither a file or folder here nor a search on {client.server}: `kerf search ls` "
                    "lists the searches"
                ) from None
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFileError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigFileError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigFileError(f"{file}: this is no result of a search")
    return data
