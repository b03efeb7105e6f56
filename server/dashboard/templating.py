"""Templates to responses, with the headers that every page carries."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.dashboard.formats import FILTERS

HERE = Path(__file__).parent
STATIC_DIR = HERE / "static"
STATIC_URL = "/static"

#: Nothing from elsewhere, no inline script or style, no framing: what a page shows, this server sent.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Pages hold figures behind a sign-in, and are fetched again on every change anyway.
    "Cache-Control": "no-store",
}


@cache
def static_url(name: str) -> str:
    """The address of a static file, with a part of its hash: a new release is never mixed with cached files."""
    digest = hashlib.sha256((STATIC_DIR / name).read_bytes()).hexdigest()
    return f"{STATIC_URL}/{name}?v={digest[:12]}"


@cache
def environment() -> Environment:
    """The template environment. Escaping is on for everything, and an unknown name is an error."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(FILTERS)
    env.globals["static"] = static_url
    return env


def render(template: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A page or a fragment of one."""
    html = environment().get_template(template).render(**values)
    return HTMLResponse(html, status_code=status_code, headers=PAGE_HEADERS)
