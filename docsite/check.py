"""`python -m docsite.check site`: whether the built site is whole by itself. It must load nothing from elsewhere."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

#: What a browser fetches by itself, by element.
_LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
#: Links that only say something of the page.
_SAYS = {"canonical", "next", "prev", "alternate"}


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        address = values.get(_LOADS.get(tag, ""))
        if tag == "link" and values.get("rel") in _SAYS:
            return
        if address and (address.startswith("//") or "://" in address):
            self.found.append(address)


def loads_from_elsewhere(site: Path) -> list[str]:
    """What the pages of a built site would fetch from other hosts: "PAGE: ADDRESS"."""
    found = []
    for path in sorted(site.rglob("*.html")):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in page.found]
    for path in sorted(site.rglob("*.css")):
        if "url(http" in (text := path.read_text(encoding="utf-8")) or "@import" in text:
            found.append(f"{path.relative_to(site)}: loads from elsewhere")
    return found


def main() -> int:
    found = loads_from_elsewhere(Path(sys.argv[1]))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
