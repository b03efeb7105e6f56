"""`python -m docsite.screenshots`: the pictures of the dashboard in docs/images/, from a real run on this machine.

Starts server, worker and agent, as `kerf up` does, and two searches of the demo's network, one with native and one with
TFLite kernels. A browser has the first one's page open from its beginning, and takes its picture without a reload while
networks are trained; the other pages follow when both have ended. Some ten minutes, in Debian's chromium.
`--state FOLDER` keeps the run there; given again, its measurements are used, and only the first search is made anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from device_agent.contracts import encode
from kerf import Client
from search.domain.config import SearchConfig
from server.cli.demo import demo_config
from server.cli.local_stack import LocalStack, StackOptions, running_stack

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OUTPUT = Path("docs/images")
WIDTH, PHONE_WIDTH = 1080, 390
#: Pixels of the picture to one of the page: the pages of repositories show pictures about 850 wide.
SCALE = 1.5
#: Pixels above and below the elements of a picture.
MARGIN = 16
#: What a picture may weigh: they are loaded with the README.
MAX_BYTES = 150_000
TIMEOUT_S = 3600.0
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
#: What the page of a search that trains its third network of eight has.
_TRAINED = re.compile("2 of 8, candidate")
#: "4x1 on a 3x3 convolution of several densities" is more telling than a dense layer.
_KERNEL = {"op": "conv2d", "scheme": "group", "max_density": 0.9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture: the page at `address` from `start` to the end of `end`, `height` pixels of it at most."""

    name: str
    address: str
    height: int = 900
    start: str = "header"
    end: str = "body"
    width: int = WIDTH
    scheme: str = "light"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--state", type=Path, help="folder that keeps the run")
    parser.add_argument("--ended", action="store_true", help="no search: the pages of those that --state has")
    parser.add_argument("--quick", action="store_true", help="small budgets, to try this script: minutes")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with _folder(given.state) as state, running_stack(StackOptions(state_dir=state)) as stack, _chromium() as browser:
        with stack.client() as client:
            dense, sparse = _configs(given.quick)
            if not given.ended:
                watched = client.searches.create(encode(sparse))["id"]
                if not any(row["name"] == dense.name for row in client.searches.list()):
                    client.searches.create(encode(dense))
                _watch(browser, stack, client, watched, given.output)
            for row in client.searches.list():
                client.searches.open(row["id"]).wait(progress=False)
            # The latest is the first of the list.
            shots = _shots(stack, client, next(r["id"] for r in client.searches.list() if r["name"] == sparse.name))
        for shot in shots:
            with _page(browser, stack, shot) as page:
                page.goto(shot.address)
                _settle(page)
                _take(page, shot, given.output)


def _configs(quick: bool) -> tuple[SearchConfig, SearchConfig]:
    demo = replace(demo_config(quick), name="digits, sparse")
    kernels, networks = (replace(m, runtime="tflite") for m in (demo.measuring.kernels, demo.measuring.networks))
    measuring = replace(demo.measuring, kernels=kernels, networks=networks)
    # TFLite multiplies the zeros, so only channels vary.
    space = replace(demo.space, weights=None)
    return replace(demo, name="digits, dense in TFLite", space=space, measuring=measuring), demo


def _watch(browser: Browser, stack: LocalStack, client: Client, search_id: str, output: Path) -> None:
    """The page of a running search, opened at its beginning and not loaded again."""
    shot = Shot(name="search", address=f"/searches/{search_id}", height=1200, end="#chart-box")
    with _page(browser, stack, shot) as page:
        page.goto(shot.address)
        deadline = time.monotonic() + TIMEOUT_S
        # Some are trained by then, so that training has a bar and the events tell of them.
        while not page.get_by_text(_TRAINED).is_visible():
            stack.check()
            state = client.searches.get(search_id)["state"]
            if state not in ("pending", "running"):
                raise SystemExit(f"the search was {state} before its page showed that it trains")
            if time.monotonic() > deadline:
                raise SystemExit(f"no network was trained in {TIMEOUT_S:.0f} s")
            page.wait_for_timeout(200)
        _settle(page)
        _take(page, shot, output)


def _shots(stack: LocalStack, client: Client, search_id: str) -> list[Shot]:
    # The largest of each runtime: whole networks have series of their own.
    series = {r["runtime"]: r["id"] for r in sorted(client.latency.series(), key=lambda r: r["num_measurements"])}
    native, tflite = series["native"], series["tflite"]
    deadline = time.monotonic() + TIMEOUT_S
    # A worker makes cards when there is no search.
    while any(client.latency.card(identity)["card"] is None for identity in (native, tflite)):
        stack.check()
        if time.monotonic() > deadline:
            raise SystemExit(f"the cards were not made in {TIMEOUT_S:.0f} s")
        time.sleep(0.5)
    kernel = client.latency.list(series=native, **_KERNEL, limit=1)[0]["latency"]["kernel_id"]
    chosen = client.searches.result(search_id)["front"][0]["candidate_id"]
    search = f"/searches/{search_id}"
    return [
        Shot(name="fleet", address="/", height=820),
        Shot(name="phone-dark", address=search, start="#front-title", end="#chart", width=PHONE_WIDTH, scheme="dark"),
        Shot(name="candidate", address=f"{search}/candidates/{chosen}", height=1200, end="table.layers"),
        Shot(name="heat-map", address=f"/series/{native}/profit", height=820),
        Shot(name="kernel", address=f"/series/{native}/kernels/{kernel}", end=".chart-box"),
        Shot(name="card", address=f"/series/{native}", height=1200, end=".chart-box"),
        Shot(name="comparison", address=f"/compare?first={tflite}&second={native}", height=1200, end=".chart-box"),
    ]


def _settle(page: Page) -> None:
    # A page that is live never has a quiet network.
    page.wait_for_load_state("load")
    if page.query_selector("#chart"):
        page.wait_for_selector('#chart[data-ready="true"]')


def _take(page: Page, shot: Shot, output: Path) -> None:
    first, last = (page.locator(selector).first.bounding_box() for selector in (shot.start, shot.end))
    assert first is not None, shot.start
    assert last is not None, shot.end
    height = min(shot.height, last["y"] + last["height"] + MARGIN - first["y"])
    clip = {"x": 0, "y": max(0, first["y"] - MARGIN), "width": shot.width, "height": height}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))  # type: ignore[arg-type]
    path = output / f"{shot.name}.png"
    # Pages have few colours: a palette of 256 is a third of the size.
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size / 1000:.0f} kB", flush=True)
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MAX_BYTES}: make it lower")


@contextlib.contextmanager
def _page(browser: Browser, stack: LocalStack, shot: Shot) -> Iterator[Page]:
    options: Mapping[str, Any] = {"color_scheme": shot.scheme, "device_scale_factor": SCALE, "base_url": stack.url}
    profile = browser.new_context(viewport={"width": shot.width, "height": 900}, **options)
    try:
        yield profile.new_page()
    finally:
        profile.close()


@contextlib.contextmanager
def _chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("no chromium on this machine: install it with the system's package manager")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="kerf-screenshots-") as name:
        yield Path(name)


if __name__ == "__main__":
    main()
