"""The files of the status page, read once from the package: no part of a request ever becomes a path.

Used by `admin`.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import Final, NamedTuple

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/uPlot.iife.min.js": ("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uPlot.min.css": ("uPlot.min.css", "text/css; charset=utf-8"),
    "/uPlot.LICENSE.txt": ("uPlot.LICENSE.txt", "text/plain; charset=utf-8"),
}
"""By path: the file in `page/`, and its type."""


class Asset(NamedTuple):
    """One file, as it is answered."""

    body: bytes
    content_type: str
    tag: str
    """Its entity tag: another one in another version."""


def load_assets() -> dict[str, Asset]:
    """The files by path."""
    folder = files("dispatcher.sidecar") / "page"
    found = {}
    for path, (name, content_type) in FILES.items():
        body = (folder / name).read_bytes()
        found[path] = Asset(body, content_type, f'"{sha256(body).hexdigest()[:20]}"')
    return found
