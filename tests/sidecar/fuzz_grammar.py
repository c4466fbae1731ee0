"""The grammar of the fuzzer: callers' requests, sane and insane, as Hypothesis strategies.

Words that have been trouble to somebody, put together at random. Used by `fuzz`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.sidecar.fuzz_requests import (
    CALLER,
    GROUP,
    MAX_BATCH,
    MAX_BODY,
    MAX_ITEMS,
    NDJSON,
    OWNER,
    SANE,
    Request,
    Talk,
)

if TYPE_CHECKING:
    from tests.sidecar.fuzz_requests import Lines

BEARER = (b"Authorization", b"Bearer " + CALLER)
CREDENTIALS: list[Lines] = [
    *[(BEARER,)] * 20,
    ((b"authorization", b"bearer   " + OWNER),),
    (),
    ((b"Authorization", b"Bearer wrong"),),
    ((b"Authorization", b"Basic " + CALLER),),
    ((b"Authorization", b""),),
    (BEARER, BEARER),
]
PATHS = [
    *("", "/", "/hook", "//double//slash/", "/a/./b/../c", "/../../..", "/%2e%2E/%2f%00%zz%", "/a:b@c"),
    *("/\"<>\\^`{|}'", "/#fragment", "/;a=b,c", "/" + "x" * 300, "/" + "y" * 6_000, "/" + "z" * 9_000),
    *("/https://other.example/", "/v2/batch", "/~!$&'()*+,;=:@"),
]
QUERIES = [
    *[""] * 8,
    *(
        "?",
        "?a=1&b=%26",
        "?&&=",
        "?a?b?c",
        "?upstash-delay=10s",
        "?Upstash-Retries=2&x=1",
        "?upstash-bogus=1",
    ),
    *("?upstash%2Ddelay=5s", "?upstash-deduplication-id=q1", "?upstash-method=NOPE", "?upstash-delay=&a"),
    f"?qstash_token={CALLER.decode()}",
    f"?a=1&%71stash_token={CALLER.decode()}&b",
    f"?&QSTASH_TOKEN={CALLER.decode()}",
    "?qstash_token=wrong",
    "?" + "q=1&" * 50,
]
HOSTS = [*[SANE] * 6, "HTTPS://sane.example", "http://sane.example:99999", "https://user:pw@sane.example"]
NAMED = [
    GROUP,
    "no-such-group",
    "api/llm",
    "api/",
    "",
    "a/b",
    "ftp://sane.example/x",
    "http:/",
    "https://",
    "%20",
]
QUEUES = [b"", b"q1", b"q2", b"q.3-_", b"q%31", b"a%2Fb", b"%00", b"%", b"q?", b"%c3%a9", b"q" * 400]
OTHER_TARGETS = [
    *(b"/", b"//", b"/v2", b"/v2/publish", b"/v2/batch/", b"//v2/batch", b"/V2/batch", b"/v2/./batch"),
    *(
        b"/v2/messages/none",
        b"/v2/queues",
        b"/v2/queues/q1",
        b"/v2/topics",
        b"/v2/keys",
        b"/v2/events?count=1",
    ),
    *(
        b"/v2/schedules",
        b"/v2/dlq",
        b"/dispatcher/",
        b"/dispatcher/status",
        b"/dispatcher",
        b"/metrics",
        b"/%2e",
    ),
    *(b"/v2/messages/" + b"m" * 500, b"/v2/messages/msg_%00", b"/v2/batch?x=1", b"/dispatcher/../v2/batch"),
    *(b"*", b"http://evil.example/v2/batch", b"evil.example:443", b"/a b", b"/\xc3\xa9", b"x", b"/v2/\x7f"),
]
METHODS = [
    *[b"POST"] * 30,
    b"GET",
    b"HEAD",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"post",
]
OTHER_METHODS = [b"GET", b"GET", b"POST", b"HEAD", b"DELETE", b"PATCH", b"PUT", b"OPTIONS"]
NAMES = [
    *("Upstash-Delay", "Upstash-Not-Before", "Upstash-Retries", "Upstash-Method", "Upstash-Timeout"),
    *("Upstash-Callback", "Upstash-Failure-Callback", "Upstash-Deduplication-Id", "upstash-deduplication-id"),
    *("Upstash-Content-Based-Deduplication", "Upstash-Flow-Control-Key", "Upstash-Flow-Control-Value"),
    *("Upstash-Label", "Upstash-Redact-Fields", "Upstash-Retry-Delay", "Upstash-Cron", "Upstash-Bogus"),
    *("Upstash-Forward-X", "upstash-forward-x", "Upstash-Forward-Content-Type", "Upstash-Header-Forward"),
    *("Content-Type", "content-type", "Upstash-", "X-Other", "Cookie", "Upstash-Callback-Forward-Y"),
]
VALUES = [
    *("", "10s", "1d10h30m", "0", "-1", "3", "1700000000", "true", "TRUE", "false", "GET", "NOPE", "a", "b"),
    *(
        "https://sane.example/callback",
        "not a url",
        "d1",
        "d2",
        "d:3",
        "d 4",
        "parallelism=10, rate=20, period=60s",
    ),
    *(
        "parallelism=x",
        "body,header[X]",
        "1000 * (1 + retried)",
        "* * * * *",
        "text/plain",
        "application/json",
    ),
    *("a, b", "\u00e9\u4e2d", "\t x \t", '"', "\\", "v" * 500, "9" * 400, "{}", "%00"),
]
TEXTS = [
    "",
    "x",
    "hello",
    '{"a": 1}',
    "null",
    "é中😀",
    "\x00\x1f",
    '"\\\n\r\t',
    "\u2028",
    "[" * 300,
    "long " * 900,
]
BODIES = [
    *[text.encode() for text in TEXTS],
    *(
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"0\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        bytes(range(256)),
        b"\xef\xbb\xbfx",
    ),
    *(b"a" * 16_000, b"\xff" * 19_999, b"b" * MAX_BODY, b"c" * (MAX_BODY + 1), b"d" * 60_000),
]
ODD_VALUES: list[Any] = [None, 1, -1.5, True, [], {}, [["x"]], {"a": "b"}, "", 10**30]
ODD_JSON = [
    *(
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[null]",
        b"[[]]",
        b"[1]",
        b'"x"',
        b"[",
        b"[{}",
        b"[{}]",
        b"[{},]",
        b"\xff",
    ),
    *(b"[" * 5_000, b"[" * 2_000 + b"]" * 2_000, b'[{"destination":"\\ud800"}]', b"\xef\xbb\xbf[]", b" [ ] "),
    *(b'[{"destination":"https://sane.example","destination":"https://sane.example/2"}]', b"[{}] x", b"NaN"),
    b'[{"destination":"https://sane.example","body":' + b"[" * 3_000 + b"]" * 3_000 + b"}]",
    b"["
    + b'{"destination":"https://sane.example/many"},' * MAX_ITEMS
    + b'{"destination":"https://sane.example"}]',
    b'[{"destination":"https://sane.example","body":"' + b"e" * MAX_BATCH + b'"}]',
]
PIECES = [
    *(
        b"",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"%",
        b"0\r\n\r\n",
        b"HTTP/1.1",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: x\r\n",
    ),
    *(
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\n",
        b"ffffffffffffffff",
    ),
    *(
        b"Host: a\r\n",
        b"X: y\r\n" * 300,
        b"A" * 9_000,
        b"GET /v2/queues HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0",
    ),
]

one_of = st.sampled_from
letters = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#"), max_size=12)


@st.composite
def destinations(draw: st.DrawFn) -> str:
    """Mostly URLs, with and without what is odd in them."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(one_of(NAMED))
    path = draw(one_of(PATHS)) if kind < 7 else "/" + draw(letters)
    return draw(one_of(HOSTS)) + path + draw(one_of(QUERIES))


header_values = st.one_of(one_of(VALUES), one_of(VALUES), st.text(max_size=8))
sane_values = st.one_of(
    one_of(VALUES),
    st.text(
        st.characters(exclude_characters="\x7f", min_codepoint=0x20, exclude_categories=["Cs"]), max_size=8
    ),
)
lines = st.lists(st.tuples(one_of(NAMES).map(str.encode), sane_values.map(str.encode)), max_size=4)
bodies = st.one_of(one_of(BODIES), one_of(BODIES), st.binary(max_size=40))
chunk_sizes = st.one_of(
    st.just(()), st.just(()), st.lists(st.integers(1, 3_000), min_size=1, max_size=3).map(tuple)
)
versions = one_of([*[b"HTTP/1.1"] * 15, b"HTTP/1.0"])


@st.composite
def items(draw: st.DrawFn) -> Any:
    """An element of a batch."""
    if draw(st.integers(0, 15)) == 15:
        return draw(one_of(ODD_VALUES))
    item: dict[str, Any] = {"destination": draw(destinations())}
    if draw(st.booleans()):
        item["body"] = draw(one_of(TEXTS))
    if draw(st.integers(0, 3)) == 3:
        item["queue"] = draw(one_of(["q1", "q2", "", None, "a/b", "q\x00", "é"]))
    if draw(st.integers(0, 2)) == 2:
        value = st.one_of(header_values, st.lists(header_values, max_size=3))
        item["headers"] = draw(st.dictionaries(one_of(NAMES), value, max_size=3))
    if draw(st.integers(0, 9)) == 9:
        item[draw(one_of(["body", "queue", "headers", "destination", "extra"]))] = draw(one_of(ODD_VALUES))
    return item


@st.composite
def publishes(draw: st.DrawFn) -> Request:
    """One to publish or to enqueue."""
    target = b"/v2/publish/"
    if draw(st.integers(0, 3)) == 3:
        target = b"/v2/enqueue/" + draw(one_of(QUEUES)) + b"/"
    target += draw(destinations()).encode("latin-1")
    return _request(draw, draw(one_of(METHODS)), target, tuple(draw(lines)), draw(bodies))


@st.composite
def batches(draw: st.DrawFn) -> Request:
    """A JSON batch, or what looks like one."""
    body = (
        draw(one_of(ODD_JSON))
        if draw(st.integers(0, 3)) == 3
        else _dumped(draw(st.lists(items(), max_size=6)), draw(st.booleans()))
    )
    extra: Lines = draw(one_of([((b"Content-Type", b"application/json"),), (), ((b"content-type", b"x"),)]))
    return _request(
        draw, draw(one_of(METHODS)), b"/v2/batch" + draw(one_of([*[b""] * 9, b"?a=1"])), extra, body
    )


@st.composite
def streams(draw: st.DrawFn) -> Request:
    """NDJSON."""
    found = [_dumped(item, draw(st.booleans())) for item in draw(st.lists(items(), max_size=6))]
    found += draw(
        st.lists(one_of([b"", b" ", b"\r", b"{", b"[]", b"\xff", b"1", b"\x0b", b"x" * 100]), max_size=2)
    )
    body = draw(one_of([b"\n", b"\r\n"])).join(draw(st.permutations(found)))
    body += draw(one_of([b"", b"\n", b"\n\n"]))
    name = draw(one_of([NDJSON, NDJSON, NDJSON + b"; charset=utf-8", b"Application/X-NDJSON"]))
    return _request(draw, draw(one_of(METHODS)), b"/v2/batch", ((b"Content-Type", name),), body)


@st.composite
def others(draw: st.DrawFn) -> Request:
    """What is not for the intake."""
    method = draw(one_of(OTHER_METHODS))
    body = draw(bodies) if method in (b"POST", b"PUT", b"PATCH") else b""
    return _request(draw, method, draw(one_of(OTHER_TARGETS)), tuple(draw(lines)), body)


def _request(draw: st.DrawFn, method: bytes, target: bytes, extra: Lines, body: bytes) -> Request:
    framing: tuple[int, ...] = draw(chunk_sizes)
    expects = bool(body) and draw(st.integers(0, 19)) == 19
    found = draw(one_of(CREDENTIALS)) + extra
    return Request(method, target, found, body, framing, draw(versions), expects)


def _dumped(value: Any, is_ascii: bool) -> bytes:
    return json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")


requests = st.one_of(publishes(), publishes(), publishes(), batches(), streams(), others())
mutations = st.tuples(st.integers(0, 1000), one_of([0, 0, 1, 2, 10, 500]), one_of(PIECES))


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """A connection."""
    said = _until_last(draw(st.lists(requests, min_size=1, max_size=5)))
    cuts = tuple(
        draw(st.one_of(st.just([]), st.just([]), st.lists(st.integers(1, 4_000), min_size=1, max_size=3)))
    )
    kind = draw(st.integers(0, 19))
    if kind < 15:
        return Talk(said, cuts, half_closes=kind > 12)
    if kind < 16:
        return Talk(said, cuts, leaves=True)
    changed = tuple(draw(st.lists(mutations, min_size=1, max_size=3)))
    return Talk(tuple(map(_maddened, said)), cuts, half_closes=True, mutations=changed)


def _until_last(said: list[Request]) -> tuple[Request, ...]:
    """Nothing behind a request of HTTP/1.0, which ends its connection."""
    last = next((number for number, one in enumerate(said, 1) if one.version == b"HTTP/1.0"), len(said))
    return tuple(said[:last])


def _maddened(request: Request) -> Request:
    """The same, so that what comes of it is known for what it is in the upstream's ledger."""
    body = request.body.replace(b"sane.example", b"mad.example").replace(
        b'"fuzz-group"', b'"https://mad.example"'
    )
    target = request.target.replace(b"sane.example", b"mad.example").replace(
        b"/fuzz-group", b"/https://mad.example"
    )
    method = b"POST" if request.method == b"HEAD" else request.method
    return replace(request, method=method, target=target, body=body)


scripts = st.lists(talks(), min_size=1, max_size=5).map(tuple)
