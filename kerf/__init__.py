"""The Python client of Kerf: `kerf.Client()` and `kerf.AsyncClient()`.

client = kerf.Client()
front = client.searches.submit(config).wait().front()
front.to_dataframe()
"""

from device_agent import __version__
from kerf.client import AsyncClient, Client
from kerf.errors import (
    ApiError,
    BadRequest,
    Conflict,
    DamagedDownload,
    Forbidden,
    KerfError,
    NotConfigured,
    NotFound,
    PayloadTooLarge,
    SearchEnded,
    ServerFailed,
    ServerUnavailable,
    Unauthorized,
    Unprocessable,
)
from kerf.front import Front, FrontPlot
from kerf.resources.searches import AsyncSearch, Search

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncSearch",
    "BadRequest",
    "Client",
    "Conflict",
    "DamagedDownload",
    "Forbidden",
    "Front",
    "FrontPlot",
    "KerfError",
    "NotConfigured",
    "NotFound",
    "PayloadTooLarge",
    "Search",
    "SearchEnded",
    "ServerFailed",
    "ServerUnavailable",
    "Unauthorized",
    "Unprocessable",
    "__version__",
]
