"""Whatever is no publish goes to the upstream as it came, and its answer comes back as it was.

Both bodies stream: nothing is collected but answers of a few kilobytes, which leave in one piece with their
head. What changes on the way is the connection's own business (hop-by-hop headers, framing) and the
credential: the caller's never leaves, the upstream's takes its place. The target is kept byte for byte. No
cookies pass: to the upstream all callers are one.

Who presents the upstream's own token may do all that it allows. Other callers may do exactly this, with no
header but the plain ones of `OF_CALLERS`:
- `GET /v2/messages/{id}`, with any query;
- `DELETE /v2/messages/{id}`, without a query;
- `DELETE /v2/messages` with a list of ids and nothing else, see `cancels`.
With `proxy = "messages"` the same paths are all that owners get, though they may cancel without naming.

What it must never do: send to any other place than the configured upstream, follow a redirect, let a caller
do more than stands above, or say in an error what a query or a header held. `app` calls it with what `guard`
found out about the caller.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from dispatcher.sidecar import cancels
from dispatcher.sidecar.cancels import ID, Cancel
from dispatcher.sidecar.guard import Caller, is_token_key
from dispatcher.sidecar.refusals import JSON, Refused, error_body
from dispatcher.sidecar.relay import HOP_BY_HOP, Answer, Mask, passed
from dispatcher.transport import KEEPALIVE_SECONDS, proxy_of, tls_context, words_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatcher.config import Config
    from dispatcher.sidecar.server import Request
    from dispatcher.sidecar.settings import ServeSettings

READ_BUFFER_BYTES: Final = 65_536
CONNECTIONS_MAX: Final = 256
HEAD_BYTES_MAX: Final = 65_536
NOT_FORWARDED: Final = HOP_BY_HOP | {"authorization", "host", "expect", "cookie", "prefer"}
OF_CALLERS: Final = frozenset(
    {
        *("accept", "accept-language", "user-agent"),
        *("content-type", "content-length", "content-encoding"),
    }
)
"""Of callers who are not owners these are passed on, and `TELEMETRY`: no other header, which could make
another request of theirs. Without `Accept-Encoding` the answer can be read, see `relay.Mask`."""
TELEMETRY: Final = "upstash-telemetry-"
_MESSAGE: Final = re.compile(rf"/v2/messages/(?!\.{{1,2}}(?:\?|$)){ID}(?P<query>\?[^#]*)?")
"""One message by an id without escapes: no path that the upstream could read as another one."""
_ALL: Final = ("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
"""What aiohttp must not add to a request."""


class Proxy:
    """Passes requests to the upstream.

    Args:
        config: Whose `url`, `token` and `transport` settings are used.
        serve: `proxy` and the bounds.
    """

    def __init__(self, config: Config, serve: ServeSettings) -> None:
        self._config = config
        self._serve = serve
        base = URL(config.url, encoded=True)
        self._origin = {"scheme": base.scheme, "host": base.raw_host or "", "port": base.port}
        self._prefix = base.raw_path.rstrip("/")
        self._env_proxy = proxy_of(base) if config.transport.trust_env else None
        self.set_token(config.token)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Proxy to {self._config.url}, {self._serve.proxy}>"

    async def start(self) -> None:
        """Open what is needed, in the running loop."""
        transport = self._config.transport
        connector = aiohttp.TCPConnector(
            limit=CONNECTIONS_MAX,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=True if transport.ca_file is None else tls_context(transport.ca_file),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            skip_auto_headers=_ALL,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=transport.connect_timeout,
                sock_read=self._serve.request_timeout,
            ),
        )

    async def aclose(self) -> None:
        """Close every connection to the upstream."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def set_token(self, token: str) -> None:
        """Present another token from the next request on."""
        self._authorization = f"Bearer {token}"
        self._mask = Mask(token)

    # ---------------------------------------------------------------------------------------------- requests

    async def handle(
        self,
        request: Request,
        caller: Caller,
        target: str | None = None,
        cancel: Cancel | None = None,
    ) -> web.StreamResponse:
        """Pass one request on and its answer back.

        Args:
            target: What to ask for instead of what the caller asked for, bound by the same rules.
            cancel: What of a bulk cancelling is to be done, understood already; its answer is in one piece.

        Raises:
            Refused: Its body is broken; the server answers that.
        """
        target = request.raw_path if target is None else target
        refused = self.refusal(request.method, target, caller)
        if refused is not None:
            return _error(*refused)
        is_short = cancel is not None
        try:
            headers = self._forwarded(request, caller)
            if cancel is None and caller is not Caller.OWNER and cancels.is_bulk(target):
                cancel = await cancels.read(request, without_token(target))
            if cancel is not None:
                _describe(cancel, headers)
        except ValueError as error:
            return _error(400, str(error))
        except Refused as why:
            if request.has_more_body:
                raise
            return _error(why.status, why.text)
        request.is_stream = True
        upload = _Upload(request, None if caller is Caller.OWNER else self._serve.max_body_bytes)
        answer = Answer(request, None if caller is Caller.OWNER else self._mask, is_short=is_short)
        try:
            return await self._exchange(request, target, headers, cancel, upload, answer)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if upload.refused is not None:
                raise upload.refused from None
            if answer.is_begun:
                raise ConnectionError("the upstream's answer broke off") from None
            return _failure(error)

    def refusal(self, method: str, target: str, caller: Caller) -> tuple[int, str] | None:
        """Status and text for what this caller may not ask the upstream; `None` where it may."""
        if caller is Caller.NONE:
            return 401, "unauthorized: the token is missing or wrong"
        allowed = self._serve.proxy
        if allowed == "none":
            return 404, "not found: this sidecar passes nothing on (its setting serve.proxy is `none`)"
        if allowed == "all" and caller is Caller.OWNER:
            return None
        if self._is_of_messages(method, target, caller):
            return None
        cure = (
            "present the upstream's own token"
            if allowed == "all"
            else "its setting serve.proxy allows no more"
        )
        return 403, f"this sidecar passes on only look-up and cancelling of messages for you; {cure}"

    @staticmethod
    def _is_of_messages(method: str, target: str, caller: Caller) -> bool:
        """Whether it looks up or cancels; what a caller names of many messages is read later."""
        if method == "DELETE" and cancels.is_bulk(target):
            return "#" not in target
        one = _MESSAGE.fullmatch(without_token(target))
        if method == "DELETE":
            return one is not None and (caller is Caller.OWNER or not one["query"])
        return method == "GET" and one is not None

    def _forwarded(self, request: Request, caller: Caller) -> CIMultiDict[str]:
        """The headers that go on, with the upstream's credential.

        Raises:
            ValueError: One of them is no text.
        """
        headers = passed(request.headers, NOT_FORWARDED)
        if caller is not Caller.OWNER:
            headers = _plain(headers)
        for name, value in headers.items():
            if not (value.isascii() or _is_text(value)):
                raise ValueError(f"the header {name} is not UTF-8 text")
        headers["Authorization"] = self._authorization
        return headers

    def _url(self, target: str) -> URL:
        """The upstream's URL for a raw target.

        The target stands whole in the place of the path, `?` and all: parsed, an empty query would be lost.
        """
        return URL.build(**self._origin, path=self._prefix + without_token(target), encoded=True)  # type: ignore[arg-type]

    async def _exchange(
        self,
        request: Request,
        target: str,
        headers: CIMultiDict[str],
        cancel: Cancel | None,
        upload: _Upload,
        answer: Answer,
    ) -> web.StreamResponse:
        assert self._session is not None, "the proxy was not started"
        path, body = cancel or (target, upload if request.body_exists else None)
        async with self._session.request(
            request.method,
            self._url(path),
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._env_proxy,
        ) as response:
            try:
                return await answer.relay(response)
            finally:
                if cancel is None and not upload.is_done:
                    response.close()  # it answered before it had read everything


class _Upload:
    """A caller's body on its way; iterated once."""

    def __init__(self, request: Request, bound: int | None) -> None:
        self._request = request
        self._bound = bound
        self._is_begun = False
        self.is_done = not request.body_exists
        self.refused: Refused | None = None
        """Why it could not be read to its end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_begun:  # aiohttp repeats a PUT or DELETE whose connection had gone stale
            raise ConnectionResetError("the connection was lost, and a body that was streamed is gone")
        self._is_begun = True
        size = 0
        try:
            async for part in self._request.content.iter_any():
                size += len(part)
                if self._bound is not None and size > self._bound:
                    raise Refused(413, f"the body has more than {self._bound} bytes")
                yield part
        except Refused as refused:
            self.refused = refused
            raise
        self.is_done = True


def without_token(target: str) -> str:
    """The same target without the parts of its query that present a token, every other byte kept."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    parts = query.split("&")
    kept = [part for part in parts if not is_token_key(part)]
    if len(kept) == len(parts):
        return target
    return f"{path}?{'&'.join(kept)}" if kept else path


def _plain(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """Those of a caller who is no owner."""
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (lower := name.lower()) in OF_CALLERS or lower.startswith(TELEMETRY)
    )


def _describe(cancel: Cancel, headers: CIMultiDict[str]) -> None:
    """Let the headers say what stands in the body that we wrote."""
    for name in ("Content-Type", "Content-Length", "Content-Encoding", "Accept-Encoding"):
        headers.popall(name, None)
    if cancel.body is not None:
        headers["Content-Type"] = JSON


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a byte that was no UTF-8
        return False
    return True


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=error_body(text), content_type=JSON)


def _failure(error: Exception) -> web.Response:
    """What came of the upstream, for the caller: the texts of errors here name hosts and causes only."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return _error(502, f"cannot connect to the upstream: {words_of(error)}")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return _error(504, "the upstream did not answer in time")
    return _error(502, f"the connection to the upstream was lost: {type(error).__name__}")
