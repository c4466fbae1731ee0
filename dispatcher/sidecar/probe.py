"""Asks the upstream one harmless question: is it there, does it take the token, is it the right URL?

`GET /v2/queues` lists queues and changes nothing. What is told never holds the token, nor more of a reply
than the upstream's own short error. Used by the command `check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import aiohttp
import orjson
from yarl import URL

from dispatcher.transport import USER_AGENT, proxy_of, read_bounded, tls_context, words_of

if TYPE_CHECKING:
    from dispatcher.config import Config

PATH: Final = "/v2/queues"
REPLY_BYTES_MAX: Final = 1_048_576
WORDS_MAX: Final = 200
REFUSALS: Final = (401, 403)

Verdict = Literal["reachable", "token refused", "wrong URL", "unreachable", "in trouble"]


class Finding(NamedTuple):
    """What one question brought."""

    verdict: Verdict
    detail: str
    """What came back, and what to look at."""

    @property
    def is_good(self) -> bool:
        """Messages can be sent there."""
        return self.verdict == "reachable"


async def probe(config: Config) -> Finding:
    """Ask once, within the bounds of the settings of the transport."""
    settings = config.transport
    url = URL(config.url + PATH, encoded=True)
    timeout = aiohttp.ClientTimeout(total=settings.attempt_timeout, connect=settings.connect_timeout)
    tls = True if settings.ca_file is None else tls_context(settings.ca_file)
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Authorization": f"Bearer {config.token}"},
                timeout=timeout,
            ) as session,
            session.get(
                url, allow_redirects=False, proxy=proxy_of(url) if settings.trust_env else None
            ) as response,
        ):
            body = await read_bounded(response, REPLY_BYTES_MAX)
            if body is None:
                return Finding("wrong URL", f"{response.status} with a long answer: something else is there")
            return judge(response.status, body)
    except TimeoutError:
        return Finding("unreachable", f"no answer within {settings.attempt_timeout:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Finding("unreachable", words_of(error))


def judge(status: int, body: bytes) -> Finding:
    """What an answer to `GET /v2/queues` means."""
    said = _said(status, body)
    if 200 <= status < 300:
        if _is_list(body):
            return Finding("reachable", f"{said}: the token is accepted")
        return Finding("wrong URL", f"{said}, but no list of queues: something else answers there")
    if status in REFUSALS:
        return Finding("token refused", f"{said}; QSTASH_TOKEN is that of another account or region, or old")
    if 300 <= status < 400:
        return Finding("wrong URL", f"{said}: a redirect, which is never followed")
    if status in (404, 405):
        return Finding("wrong URL", f"{said}; QSTASH_URL is the base URL, without /v2")
    return Finding("in trouble", said)


def _said(status: int, body: bytes) -> str:
    """The status with the service's own short text, if it is in the service's form."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return str(status)
    text = told.get("error") if isinstance(told, dict) else None
    if not isinstance(text, str):
        return str(status)
    shown = "".join(char if char.isprintable() else " " for char in text)
    return f"{status} {shown[:WORDS_MAX]}"


def _is_list(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), list)
    except orjson.JSONDecodeError:
        return False
