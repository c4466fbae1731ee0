"""The only file that talks to the upstream.

`Transport` is the seam: two ways to post, each giving what the service said (`Reply`) or why it said
nothing usable (`Failure`), never an exception. `HTTPTransport` is the real one, over aiohttp;
`dispatcher.testing.ScriptedTransport` is the public fake.

What it must get right is the difference between *not sent* (no connection was made) and *unknown*: that is
why `ClientTimeout(total=…)`, which cannot tell the two apart, is not used. It never follows a redirect,
keeps no cookies, and reads proxy settings only when told to.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Protocol
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from dispatcher.core.batch import Failure, Reply
from dispatcher.core.wire import BATCH_PATH
from dispatcher.errors import ConfigError
from dispatcher.settings import MASK, SECRET_MIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aiohttp.abc import AbstractStreamWriter

    from dispatcher.config import Config

KEEPALIVE_SECONDS: Final = 30.0
_NOT_OURS: Final = ("Content-Type",)
"""Headers that aiohttp must not add: a content-deduplicated message is hashed with its Content-Type."""
USER_AGENT: Final = "qstash-dispatcher"
CONNECT_SHARE: Final = 0.9
PLAIN_BODY_BYTES: Final = 1_048_576
READ_HEADERS: Final = frozenset(
    {
        *("retry-after", "location", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
        *("burst-ratelimit-limit", "burst-ratelimit-remaining", "burst-ratelimit-reset"),
    }
)
"""Reply headers that the core may read; the others are not kept."""
_NOTHING_SENT: Final = (
    aiohttp.ClientConnectorError,  # unknown host, refused, unreachable; certificate errors are its children
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)


class Transport(Protocol):
    """Posts one request; thread-safe it need not be."""

    async def start(self) -> None:
        """Open what is needed, in the running loop."""
        ...

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        """`POST /v2/batch` with this JSON array; `timeout` in seconds for the whole attempt."""
        ...

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        """`POST` one message to a raw target below the base URL; `headers` are lines, repeats included."""
        ...

    def set_token(self, token: str) -> None:
        """Use another token from the next request on."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class _Noted(aiohttp.payload.Payload):
    """A body that knows whether it was begun: aiohttp writes the head with it, and nothing before.

    (Its tracing would tell the same for a fifth of the request's cost.)
    """

    is_begun = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Called once there is a connection."""
        self.is_begun = True
        await super().write_with_length(writer, content_length)


class _Body(_Noted, aiohttp.payload.BytesPayload):
    pass


class _LargeBody(_Noted, aiohttp.payload.BytesIOPayload):
    pass


class HTTPTransport:
    """The upstream over aiohttp: one session, one connection for each request in flight, kept alive."""

    def __init__(self, config: Config) -> None:
        self._settings = config.transport
        self._base = config.url
        self.set_token(config.token)
        self._batch_url = self._url(BATCH_PATH)
        self._attempt_timeout = config.transport.attempt_timeout
        self._usual_bounds = self._bounds(self._attempt_timeout)
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    def __repr__(self) -> str:
        return f"<HTTPTransport to {self._base}>"

    async def start(self) -> None:
        """Open the session."""
        settings = self._settings
        self._proxy = proxy_of(self._batch_url) if settings.trust_env else None
        connector = aiohttp.TCPConnector(
            limit=0,  # the core limits what is in flight; a second limit here would only hide waiting
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=True if settings.ca_file is None else tls_context(settings.ca_file),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": USER_AGENT},
            skip_auto_headers=_NOT_OURS,
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=False,
            auto_decompress=True,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        """Send one batch."""
        return await self._post(self._batch_url, [("Content-Type", "application/json")], body, timeout)

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        """Send one message by itself; the target is pasted raw, as the service reads it."""
        return await self._post(self._url(target), list(_lines(headers)), body, timeout)

    def _url(self, target: str) -> URL:
        """The URL of a raw target, taken for a path: parsed, an empty query or a `#` would be lost."""
        base = URL(self._base, encoded=True)
        path = base.raw_path.rstrip("/") + target
        return URL.build(scheme=base.scheme, authority=base.raw_authority, path=path, encoded=True)

    def set_token(self, token: str) -> None:
        """Use another token from the next request on."""
        self._authorization = f"Bearer {token}"
        self._secret = token.encode() if len(token) >= SECRET_MIN else None

    async def aclose(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(
        self, url: URL, headers: list[tuple[str, str]], body: bytes, timeout: float
    ) -> Reply | Failure:
        session = self._session
        assert session is not None, "the transport was not started"
        headers.append(("Authorization", self._authorization))
        secret = self._secret
        # aiohttp warns about large plain bytes, which it would write in one piece; a file it reads in parts.
        payload = _LargeBody(io.BytesIO(body)) if len(body) > PLAIN_BODY_BYTES else _Body(body)
        bounds = self._usual_bounds if timeout == self._attempt_timeout else self._bounds(timeout)
        try:
            async with (
                asyncio.timeout(timeout),
                session.post(
                    url,
                    data=payload,
                    headers=headers,
                    allow_redirects=False,
                    timeout=bounds,
                    proxy=self._proxy,
                ) as response,
            ):
                reply = await self._read(response)
        except _NOTHING_SENT as error:
            return Failure("connect", f"cannot connect to {self._base}: {words_of(error)}", "not_sent")
        except TimeoutError:
            if not payload.is_begun:
                return Failure("connect", f"cannot connect to {self._base}: not in time", "not_sent")
            return Failure("timeout", f"no complete answer within {timeout:.3g} s", "unknown")
        except (aiohttp.ClientPayloadError, aiohttp.ContentTypeError) as error:
            return Failure("reply", f"the reply broke off: {words_of(error)}", "unknown")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Failure("disconnect", f"the connection was lost: {words_of(error)}", "unknown")

        if secret is not None and isinstance(reply, Reply) and secret in reply.body:
            reply.body = reply.body.replace(secret, MASK.encode())  # its words come to callers and logs
        return reply

    def _bounds(self, timeout: float) -> aiohttp.ClientTimeout:
        """Connecting gives up before the attempt does, so that its own words are told."""
        connect = min(self._settings.connect_timeout, timeout * CONNECT_SHARE)
        return aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect)

    async def _read(self, response: aiohttp.ClientResponse) -> Reply | Failure:
        bound = self._settings.max_reply_bytes
        if response.content_length is not None and response.content_length > bound:
            response.close()
            return Failure("reply", f"a reply of {response.content_length} bytes is not read", "unknown")
        is_told = response.content_length is not None
        body = await response.read() if is_told else await read_bounded(response, bound)
        if body is None:
            return Failure("reply", f"the reply is longer than {bound} bytes and was not read", "unknown")
        status = response.status
        if 200 <= status < 300:
            return Reply(status, body)
        given = {name.lower(): value for name, value in response.headers.items()}
        unix_at = _unix(given.get("date", "")) or time.time()
        headers = {name: given[name] for name in READ_HEADERS & given.keys()}
        if (retry_at := _unix(headers.get("retry-after", ""))) is not None:
            headers["retry-after"] = f"{max(0.0, retry_at - unix_at):.3f}"  # a date: the core reads seconds
        return Reply(status, body, headers, unix_at)


def _lines(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Header lines as aiohttp keeps all of them: of a name in two capitalisations it would take the last."""
    spelt: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower != "authorization":  # ours takes its place
            yield spelt.setdefault(lower, name), value


async def read_bounded(response: aiohttp.ClientResponse, bound: int) -> bytes | None:
    """A body without a declared length, up to a bound."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > bound:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)


def proxy_of(url: URL) -> str | None:
    """The environment's proxy for this URL. (aiohttp's own way reads `.netrc` too, against our token.)"""
    if url.host is None or proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)


def _unix(date: str) -> float | None:
    """The unix time of an HTTP date; `None` if it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("transport.ca_file", ca_file, f"it must be a readable PEM file ({error})") from None


def words_of(error: BaseException) -> str:
    """What happened, without aiohttp's repetition of where: a target may have a destination's query in it."""
    if isinstance(error, aiohttp.ClientResponseError):
        return " ".join(error.message.split())
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL is not valid"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        error = error.os_error
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
