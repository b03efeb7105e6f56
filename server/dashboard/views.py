"""The pages' addresses. A page and its fragment are the same template; htmx fetches the fragment on every change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from kerf.local import is_loopback
from server.accounts.service import DEFAULT_CODE_LIFETIME_S, mint_enrolment_code
from server.artifacts.store import check_digest
from server.artifacts.visibility import is_visible
from server.columns import database_time_s
from server.context import TOKEN_COOKIE, Context, ContextDep, count_failure, streaming
from server.dashboard import queries
from server.dashboard.candidates import candidate_page
from server.dashboard.card import card_page
from server.dashboard.compare import compare_page
from server.dashboard.explorer import explorer_page, kernel_page
from server.dashboard.front import chart_data
from server.dashboard.live import changes, overview_version, search_version
from server.dashboard.pages import DevicePage, OverviewPage, SearchPage, Viewer
from server.dashboard.profit import profit_page
from server.dashboard.quarantine import quarantine_page
from server.dashboard.queue import queue_page
from server.dashboard.queue_pages import QueuePage
from server.dashboard.searches import search_page
from server.dashboard.session import (
    LOGIN_PATH,
    DashboardRoute,
    ViewerDep,
    check_page_visible,
    is_own_form,
    is_same_site,
    local_path,
    viewer_of_token,
)
from server.dashboard.templating import STATIC_DIR, STATIC_URL, render
from server.errors import Forbidden, NotFound, PayloadTooLarge
from server.fleet.devices import MISSED_HEARTBEATS
from server.latency.exchange.endpoints import export_answer
from server.latency.exchange.tables import TableFormat
from server.latency.listing_endpoints import FilterDep, list_place
from server.searches.queries import STEERING, find_document, get_search, steer
from server.searches.repository import RESULT
from server.streams import Stream

router = APIRouter(route_class=DashboardRoute, include_in_schema=False, dependencies=[Depends(check_page_visible)])

#: A token and a path fit many times over.
MAX_FORM_BYTES = 8192
#: A sign-in lasts until the browser forgets it or the token ends, at most so long.
COOKIE_LIFETIME_S = 30 * 24 * 3600

_static = StaticFiles(directory=STATIC_DIR)

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID")]


@router.get("/")
def show_overview(context: ContextDep, viewer: ViewerDep) -> Response:
    return render("overview.html", page=_overview(context, viewer), viewer=viewer, path="/")


@router.get("/fragments/overview")
def overview_fragment(context: ContextDep, viewer: ViewerDep) -> Response:
    return render("_overview.html", page=_overview(context, viewer))


@router.get("/queue")
def show_queue(context: ContextDep, viewer: ViewerDep) -> Response:
    return render("queue.html", page=_queue(context, viewer), viewer=viewer, path="/queue")


@router.get("/fragments/queue")
def queue_fragment(context: ContextDep, viewer: ViewerDep) -> Response:
    return render("_queue.html", page=_queue(context, viewer))


@router.get("/quarantine")
def show_quarantine(context: ContextDep, viewer: ViewerDep) -> Response:
    with context.database.snapshot() as session:
        page = quarantine_page(session, database_time_s(session))
    return render("quarantine.html", page=page, viewer=viewer, path="")


@router.get("/enrol")
def show_enrolment(request: Request, viewer: ViewerDep) -> Response:
    return _enrolment(request, viewer, code="")


@router.post("/enrol")
def make_code(request: Request, context: ContextDep, viewer: ViewerDep) -> Response:
    """Make a code for one device. It is shown in the answer and nowhere else."""
    _require_own_form(request, viewer)
    if not viewer.may_enrol:
        raise Forbidden("making codes takes a token with the scope 'admin': use `kerf enrol-code`")
    with context.database.write() as session:
        code, _ = mint_enrolment_code(session, context.hasher)
    return _enrolment(request, viewer, code=code)


@router.get("/searches/{search_id}")
def show_search(search_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    return render("search.html", page=_search(context, search_id), viewer=viewer, path="")


@router.get("/fragments/searches/{search_id}")
def search_fragment(search_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    return render("_search.html", page=_search(context, search_id), viewer=viewer)


@router.post("/searches/{search_id}/{verb}")
def steer_search(search_id: str, verb: str, request: Request, context: ContextDep, viewer: ViewerDep) -> Response:
    """Pause, resume or cancel a search, and go back to the controls on its page; scripts get what has changed there."""
    _require_own_form(request, viewer)
    if not viewer.may_steer:
        raise Forbidden("your token may only read: sign in with one that has the scope 'searches:write'")
    if verb not in STEERING:
        raise NotFound(f"A search cannot be told to {verb!r}.")
    targets, words = STEERING[verb]
    with context.database.write() as session:
        steer(session, search_id, targets, words)
    page = f"/searches/{quote(search_id)}"
    target = f"/fragments{page}" if "hx-request" in request.headers else f"{page}#steering"
    return RedirectResponse(target, status_code=303)


@router.get("/searches/{search_id}/result.json")
def download_result(search_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    """The result of a completed search as a file, byte for byte as REST has it."""
    with context.database.read() as session:
        get_search(session, search_id)
        found = find_document(session, search_id, RESULT)
    if found is None:
        raise NotFound(f"Search {search_id} has no result yet.")
    headers = {"Content-Disposition": 'attachment; filename="result.json"', "Cache-Control": "no-store"}
    return Response(found[1].encode(), media_type="application/json", headers=headers)


@router.get("/searches/{search_id}/candidates/{candidate_id}")
def show_candidate(search_id: str, candidate_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    with context.database.snapshot() as session:
        page = candidate_page(session, search_id, candidate_id)
    return render("candidate.html", page=page, viewer=viewer, path="")


@router.get("/searches/{search_id}/front.json")
def front_data(search_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    with context.database.snapshot() as session:
        get_search(session, search_id)
        return JSONResponse(chart_data(session, search_id), headers={"Cache-Control": "no-store"})


@router.get("/devices/{device_id}")
def show_device(device_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    return render("device.html", page=_device(context, device_id), viewer=viewer, path="")


@router.get("/fragments/devices/{device_id}")
def device_fragment(device_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    return render("_device.html", page=_device(context, device_id))


@router.get("/series/{series_id}")
def show_series(series_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    with context.database.snapshot() as session:
        page = card_page(session, series_id, database_time_s(session))
    return render("series.html", page=page, viewer=viewer, path="")


@router.get("/series/{series_id}/profit")
def show_profit(
    series_id: str,
    context: ContextDep,
    viewer: ViewerDep,
    scheme: str | None = None,
    page: Annotated[int, Query(ge=1)] = 1,
) -> Response:
    with context.database.snapshot() as session:
        found = profit_page(session, series_id, database_time_s(session), scheme=scheme, page=page)
    return render("profit.html", page=found, viewer=viewer, path="")


@router.get("/explorer")
def show_explorer(context: ContextDep, viewer: ViewerDep, wanted: FilterDep, cursor: str | None = None) -> Response:
    with context.database.snapshot() as session:
        page = explorer_page(session, wanted, after=list_place(cursor), now=database_time_s(session))
    return render("explorer.html", page=page, viewer=viewer, path="/explorer")


@router.get("/explorer/latencies.{form}")
def download_latencies(form: TableFormat, context: ContextDep, viewer: ViewerDep, wanted: FilterDep) -> Response:
    """Every measurement behind the filters, as REST exports it."""
    return export_answer(context, wanted, form)


@router.get("/compare")
def show_comparison(
    context: ContextDep, viewer: ViewerDep, first: str | None = None, second: str | None = None
) -> Response:
    with context.database.snapshot() as session:
        page = compare_page(session, first, second)
    return render("compare.html", page=page, viewer=viewer, path="/compare")


@router.get("/series/{series_id}/kernels/{kernel_id}")
def show_kernel(series_id: str, kernel_id: str, context: ContextDep, viewer: ViewerDep) -> Response:
    with context.database.snapshot() as session:
        page = kernel_page(session, series_id, kernel_id, database_time_s(session))
    return render("kernel.html", page=page, viewer=viewer, path="")


async def one_stream(request: Request, context: ContextDep, viewer: ViewerDep) -> AsyncIterator[Stream]:
    """Counted until the answer has ended."""
    with streaming(request, context) as stream:
        yield stream


StreamDep = Annotated[Stream, Depends(one_stream)]


@router.get("/live", response_class=EventSourceResponse)
async def live_overview(
    context: ContextDep, stream: StreamDep, last_event_id: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """Changes of what the overview and the device pages show."""
    offline_after_s = _offline_after_s(context)
    async for event in changes(
        context, stream, "", lambda session: overview_version(session, offline_after_s=offline_after_s), last_event_id
    ):
        yield event


@router.get("/live/searches/{search_id}", response_class=EventSourceResponse)
async def live_search(
    search_id: str, context: ContextDep, stream: StreamDep, last_event_id: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """Changes of one search."""
    async for event in changes(
        context, stream, search_id, lambda session: search_version(session, search_id), last_event_id
    ):
        yield event


@router.get("/files/{sha256}/{name}")
def download(sha256: str, name: str, context: ContextDep, viewer: ViewerDep) -> Response:
    """An artifact as a download; `name` is what the browser saves it as."""
    check_digest(sha256)
    with context.database.read() as session:
        is_known = is_visible(session, sha256, viewer.sees_only)
    path = context.store.path(sha256) if is_known else None
    if path is None or not path.is_file():
        raise NotFound(f"There is no stored file {sha256}.")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    headers |= {"X-Content-Type-Options": "nosniff"}
    return FileResponse(path, filename=name, media_type="application/octet-stream", headers=headers)


@router.get(LOGIN_PATH)
def show_login(next: str = "/") -> Response:
    return render("login.html", viewer=None, path=LOGIN_PATH, next=local_path(next), problem="")


@router.post(LOGIN_PATH)
async def log_in(request: Request, context: ContextDep) -> Response:
    """Take a user's token and keep it in a cookie."""
    _require_same_site(request)
    form = parse_qs((await _small_body(request)).decode(errors="replace"))
    token, target = form.get("token", [""])[0].strip(), local_path(form.get("next", ["/"])[0])
    if await run_in_threadpool(viewer_of_token, context, token) is None:
        count_failure(request, context)
        problem = "This is not a valid user token: it is unknown, expired or revoked, or belongs to an agent."
        return render("login.html", status_code=403, viewer=None, path=LOGIN_PATH, next=target, problem=problem)
    response = RedirectResponse(target, status_code=303)
    response.set_cookie(
        TOKEN_COOKIE,
        token,
        max_age=COOKIE_LIFETIME_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    _require_same_site(request)
    response = RedirectResponse(LOGIN_PATH, status_code=303)
    response.delete_cookie(TOKEN_COOKIE, httponly=True, samesite="strict")
    return response


@router.get(STATIC_URL + "/{path:path}")
async def static_file(path: str, request: Request) -> Response:
    """Style, scripts and pictures: the same for everybody. With a version in the address they never change."""
    response = await _static.get_response(path, request.scope)
    is_versioned = "v" in request.query_params
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_versioned else "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _overview(context: Context, viewer: Viewer) -> OverviewPage:
    with context.database.snapshot() as session:
        return queries.overview(
            session, heartbeat_interval_s=context.settings.heartbeat_interval_s, owner=viewer.sees_only
        )


def _queue(context: Context, viewer: Viewer) -> QueuePage:
    interval_s = context.settings.heartbeat_interval_s
    with context.database.snapshot() as session:
        now = database_time_s(session)
        return queue_page(session, now, heartbeat_interval_s=interval_s, owner=viewer.sees_only)


def _enrolment(request: Request, viewer: Viewer, *, code: str) -> Response:
    return render(
        "enrol.html",
        viewer=viewer,
        path="",
        base_url=_base_url(request),
        is_local_address=is_loopback(request.url.hostname or ""),
        code=code,
        lifetime_s=DEFAULT_CODE_LIFETIME_S,
    )


def _search(context: Context, search_id: str) -> SearchPage:
    with context.database.snapshot() as session:
        return search_page(session, search_id, database_time_s(session))


def _device(context: Context, device_id: str) -> DevicePage:
    with context.database.snapshot() as session:
        return queries.device_page(session, device_id, heartbeat_interval_s=context.settings.heartbeat_interval_s)


def _require_same_site(request: Request) -> None:
    if not is_same_site(request):
        raise Forbidden("this form was sent from another site: open the page itself and try again")


def _require_own_form(request: Request, viewer: Viewer) -> None:
    """What is changed without a token must come from a browser that looks at our own page."""
    if not (is_same_site(request) if viewer.can_sign_out else is_own_form(request)):
        raise Forbidden("this form was sent from another site: open the page itself and try again")


def _offline_after_s(context: Context) -> float:
    return MISSED_HEARTBEATS * context.settings.heartbeat_interval_s


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def _small_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise PayloadTooLarge(f"the form is larger than {MAX_FORM_BYTES} bytes")
    return body
