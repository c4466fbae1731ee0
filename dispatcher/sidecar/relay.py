"""The upstream's answer on its way back to a caller of `proxy`, and the headers of one connection.

Short answers leave in one piece with their head, long ones as they come, nothing is collected. Status, reason
and headers are the upstream's, but for what is the connection's own, and cookies. Must never let a caller
learn the upstream's token, should the upstream quote it. Used by `proxy` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from multidict import CIMultiDict

from dispatcher.settings import SECRET_MIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import aiohttp

    from dispatcher.sidecar.server import Request

WHOLE_BYTES: Final = 65_536
"""An answer of a known length up to this is written with its head in one piece."""
HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("proxy-authenticate", "proxy-authorization", "proxy-authentication-info", "http2-settings"),
    }
)
"""Headers of one connection, not of the message."""
NOT_RETURNED: Final = HOP_BY_HOP | {"alt-svc", "set-cookie"}
"""`Alt-Svc` would send callers past us, to where their token is unknown."""


class _Unchanged(web.StreamResponse):
    """An answer whose headers are the upstream's: what aiohttp would add by itself is taken out again."""

    async def _prepare_headers(self) -> None:  # no public place comes after aiohttp's own additions
        had_type = "Content-Type" in self.headers
        await super()._prepare_headers()
        if not had_type:
            self.headers.popall("Content-Type", None)


class _Whole(_Unchanged, web.Response):
    pass


class Answer:
    """The upstream's answer on its way back.

    Args:
        mask: What hides the upstream's token, for a caller who must not learn it.
        is_short: It is known to be, whether or not its length is told: it is returned in one piece, unsent.
    """

    def __init__(self, request: Request, mask: Mask | None, *, is_short: bool = False) -> None:
        self._request = request
        self._mask = mask
        self._is_short = is_short
        self.is_begun = False

    async def relay(self, response: aiohttp.ClientResponse) -> web.StreamResponse:
        """Write the answer: whole if it is short, else piece by piece as it comes."""
        headers = passed(response.headers, NOT_RETURNED)
        mask = self._mask
        if mask is not None:
            headers = CIMultiDict((name, mask.text(value)) for name, value in headers.items())
        status, reason = response.status, _reason(response)
        length = response.content_length
        if self._request.method == "HEAD" or status in (204, 304) or length == 0:
            return _Whole(status=status, reason=reason, headers=headers)
        if self._is_short or (length is not None and length <= WHOLE_BYTES):
            body = await response.read()
            body = body if mask is None else mask.whole(body)
            return _Whole(status=status, reason=reason, headers=headers, body=body)
        answer = _Unchanged(status=status, reason=reason, headers=headers)
        self.is_begun = True
        await answer.prepare(self._request)
        parts = response.content.iter_any()
        async for part in parts if mask is None else mask.stream(parts):
            await answer.write(part)
        await answer.write_eof()
        return answer


class Mask:
    """Puts as many asterisks in the place of a secret.

    Args:
        secret: One of fewer characters than `SECRET_MIN` is left alone: it may be anybody's word.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret if len(secret) >= SECRET_MIN else ""
        self._raw = self._secret.encode()

    def __repr__(self) -> str:
        return "<Mask>"

    def text(self, text: str) -> str:
        """A text without the secret."""
        return text.replace(self._secret, "*" * len(self._secret)) if self._secret else text

    def whole(self, data: bytes) -> bytes:
        """Bytes without it, of the same length."""
        return data.replace(self._raw, b"*" * len(self._raw)) if self._raw else data

    async def stream(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Parts without it, also where it begins in one of them and ends in another."""
        kept = b""
        async for part in parts:
            data = self.whole(kept + part)
            size = self._begun(data)
            kept = data[len(data) - size :]
            if size < len(data):
                yield data[: len(data) - size]
        if kept:
            yield kept

    def _begun(self, data: bytes) -> int:
        """How many bytes at the end may be the beginning of it."""
        longest = min(len(data), len(self._raw) - 1)
        return next((size for size in range(longest, 0, -1) if self._raw.startswith(data[-size:])), 0)


def passed(headers: Any, dropped: Iterable[str]) -> CIMultiDict[str]:
    """What is the message's own: without the hop-by-hop headers and those that `Connection` names."""
    named = {
        name.strip().lower() for line in headers.getall("Connection", ()) for name in line.split(",") if name
    }
    named -= {"content-length", "content-type", "content-encoding"}  # naming these would change the message
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (lower := name.lower()) not in dropped and lower not in named
    )


def _reason(response: aiohttp.ClientResponse) -> str:
    reason = response.reason or ""
    return reason if reason.isprintable() and reason.isascii() else ""
