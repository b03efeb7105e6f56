"""Who may see the pages, and how a browser says who it is.

A browser signs in with a user token and keeps it in a cookie that scripts cannot read and other sites cannot send.
In the embedded mode (`kerf up`) the pages are open to browsers on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from kerf.local import is_loopback
from server.accounts.service import Principal, Scope, authenticate
from server.context import TOKEN_COOKIE, Context, ContextDep, admitted
from server.dashboard.pages import Viewer
from server.dashboard.templating import render
from server.errors import ApiError, Conflict, Forbidden, NotFound, TooManyRequests, Unauthorized
from server.searches.visibility import require_visible, sees_only

LOGIN_PATH = "/login"

#: Set by proxies: a request that came through one is not from this machine, whatever its address says.
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


_PROBLEM_TITLES: dict[type[ApiError], str] = {
    NotFound: "Not found",
    Forbidden: "Not allowed",
    Conflict: "Not possible any more",
    TooManyRequests: "Too often",
}


class SignInNeeded(Exception):
    """The browser has not said who it is, or its token has ended."""


def get_viewer(request: Request, context: ContextDep) -> Viewer:
    """Who looks at a page. Raises `SignInNeeded`, or `TooManyRequests`."""
    known: Viewer | None = getattr(request.state, "viewer", None)
    if known is not None:
        # A request is counted once.
        return known
    token = request.cookies.get(TOKEN_COOKIE)
    is_open = context.settings.open_dashboard and is_local(request)
    if token is not None:
        try:
            # Where no token is needed, one that has ended is no attempt to get in.
            viewer = _viewer(context, admitted(request, context, token, counts_failure=not is_open))
        except Unauthorized:
            viewer = None
        if viewer is not None:
            request.state.viewer = viewer
            return viewer
    if is_open:
        # Whoever is on this machine may steer its searches; a code would let another machine in.
        return Viewer(name="this machine", can_sign_out=False, may_steer=True, may_enrol=False)
    raise SignInNeeded


ViewerDep = Annotated[Viewer, Depends(get_viewer)]


def check_page_visible(request: Request, context: ContextDep) -> None:
    """A dependency of all pages. Raises `NotFound` for one about a search that the viewer may not see."""
    search_id = request.path_params.get("search_id")
    if search_id is None or not context.settings.multi_user:
        return
    viewer = get_viewer(request, context)
    with context.database.read() as session:
        require_visible(session, search_id, viewer.sees_only)


def viewer_of_token(context: Context, token: str) -> Viewer | None:
    """The user of a token; None where it is not valid, or not for reading (an agent's)."""
    try:
        principal = authenticate(context.database, context.hasher, token)
    except Unauthorized:
        return None
    return _viewer(context, principal)


def _viewer(context: Context, principal: Principal) -> Viewer | None:
    if not principal.may(Scope.READ):
        return None
    return Viewer(
        name=principal.name,
        can_sign_out=True,
        may_steer=principal.may(Scope.SEARCHES_WRITE),
        may_enrol=principal.may(Scope.ADMIN),
        sees_only=sees_only(context.settings, principal),
    )


def is_local(request: Request) -> bool:
    """Whether a browser on this machine sent this, knowing that it talks to this machine.

    The Host header is checked as well as the address: a page elsewhere can point a name of its own at 127.0.0.1 (DNS
    rebinding), but it cannot make the browser send another name.
    """
    if any(header in request.headers for header in _PROXY_HEADERS):
        return False
    client = "" if request.client is None else request.client.host
    return is_loopback(client) and is_loopback(request.url.hostname or "")


def is_same_site(request: Request) -> bool:
    """Whether a form was sent from one of our own pages. Browsers always say; other clients need no protection.

    They say it in Sec-Fetch-Site over TLS and to this machine itself. Over plain HTTP there is only the Origin, and
    the cookie's SameSite would not do: to it, all ports of a host are one site.
    """
    fetched_from = request.headers.get("sec-fetch-site")
    if fetched_from is not None:
        return fetched_from in ("same-origin", "none")
    return "origin" not in request.headers or _is_own_origin(request)


def is_own_form(request: Request) -> bool:
    """Whether a browser says that a form is of our own pages: what it needs to change anything without a token."""
    return is_same_site(request) and _is_own_origin(request)


def _is_own_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == request.headers.get("host")


def local_path(target: str) -> str:
    """`target` if it is a path on this server, else the overview: nobody is sent elsewhere after signing in."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else "/"


class DashboardRoute(APIRoute):
    """Turns what the pages' code raises into what a browser understands."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_for_browser(request: Request) -> Response:
            if request.method == "GET" and "" in request.query_params.values():
                # Forms send their empty fields too: those filter nothing, and are no part of the address.
                filled = [(name, value) for name, value in request.query_params.multi_items() if value]
                return RedirectResponse(f"{request.url.path}?{urlencode(filled)}", status_code=303)
            try:
                return await handle(request)
            except SignInNeeded:
                return _ask_to_sign_in(request)
            except tuple(_PROBLEM_TITLES) as error:
                answer = await run_in_threadpool(
                    render,
                    "problem.html",
                    status_code=error.status,
                    title=_PROBLEM_TITLES[type(error)],
                    detail=error.detail,
                    viewer=None,
                    path="",
                )
                answer.headers.update(error.headers)
                return answer

        return handle_for_browser


def _ask_to_sign_in(request: Request) -> Response:
    if "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers:
        target = request.url.path
        return RedirectResponse(f"{LOGIN_PATH}?next={quote(target, safe='')}", status_code=303)
    # htmx follows HX-Redirect; scripts see the status.
    return Response(status_code=401, headers={"HX-Redirect": LOGIN_PATH, "Cache-Control": "no-store"})
