"""Who may ask: tokens that are nearly right, or in odd places; and where a token may be seen."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from dispatcher import Config
from dispatcher.sidecar.guard import Guard
from dispatcher.sidecar.proxy import Proxy
from dispatcher.sidecar.settings import ServeSettings, SidecarConfig
from tests.sidecar.attacks.stage import CALLER, OTHER, OWNER, PUBLISH, came, http
from tests.sidecar.daemon_support import PATIENCE_SECONDS, environment, refused

if TYPE_CHECKING:
    from tests.sidecar.attacks.stage import Report, Stage

SECRETS = (OWNER, CALLER, OTHER)
GROUP = "identity"

HEADERS = {
    "no token": ([], 401),
    "a wrong token": (["Authorization: Bearer wrong"], 401),
    "an empty token": (["Authorization: Bearer "], 401),
    "the beginning of a token": ([f"Authorization: Bearer {CALLER[:-1]}"], 401),
    "a token and one character more": ([f"Authorization: Bearer {CALLER}x"], 401),
    "the beginning of the upstream's": ([f"Authorization: Bearer {OWNER[:-1]}"], 401),
    "a token in lower case": ([f"Authorization: Bearer {CALLER.lower()}"], 401),
    "a token in upper case": ([f"Authorization: Bearer {CALLER.upper()}"], 401),
    "two tokens in one header": ([f"Authorization: Bearer {CALLER} {OTHER}"], 401),
    "two tokens with a comma": ([f"Authorization: Bearer {CALLER},{CALLER}"], 401),
    "a token in quotes": ([f'Authorization: Bearer "{CALLER}"'], 401),
    "a token without its scheme": ([f"Authorization: {CALLER}"], 401),
    "another scheme": ([f"Authorization: Basic {CALLER}"], 401),
    "a token in another header": ([f"X-Authorization: Bearer {CALLER}"], 401),
    "a token in a cookie": ([f"Cookie: qstash_token={CALLER}"], 401),
    "a token for a proxy": ([f"Proxy-Authorization: Bearer {CALLER}"], 401),
    "two headers, one right": (["Authorization: Bearer wrong", f"Authorization: Bearer {CALLER}"], 400),
    "two headers, both right": ([f"Authorization: Bearer {CALLER}"] * 2, 400),
    "a caller's token": ([f"Authorization: Bearer {CALLER}"], 200),
    "another caller's token": ([f"Authorization: Bearer {OTHER}"], 200),
    "the scheme in lower case": ([f"authorization: bearer {CALLER}"], 200),
    "the upstream's own": ([f"Authorization: Bearer {OWNER}"], 200),
}
QUERIES = {
    "a token in the query": (f"?qstash_token={CALLER}", 200),
    "its key in upper case": (f"?QSTASH_TOKEN={CALLER}", 200),
    "its key escaped": (f"?%71stash%5ftoken={CALLER}", 200),
    "its value escaped": (f"?qstash_token=%{ord(CALLER[0]):02x}{CALLER[1:]}", 200),
    "twice in the query, one right": (f"?qstash_token=wrong&qstash_token={CALLER}", 200),
    "twice in the query, both wrong": ("?qstash_token=wrong&qstash_token=", 401),
    "its beginning in the query": (f"?qstash_token={CALLER[:-1]}", 401),
    "another key": (f"?token={CALLER}", 401),
    "its key inside another": (f"?my_qstash_token={CALLER}", 401),
    "its key twice escaped": (f"?%2571stash_token={CALLER}", 401),
    "in the fragment": (f"#qstash_token={CALLER}", 401),
    "in the path": (f"/qstash_token={CALLER}", 401),
    "as a parameter of the path": (f";qstash_token={CALLER}", 401),
}


async def attack(stage: Stage) -> None:
    """Publish with each; then see that no caller's token has gone on, and the upstream's always has."""
    before = len(stage.upstream.heads)
    for tried, (lines, status) in HEADERS.items():
        await stage.expect(GROUP, tried, http(PUBLISH, *lines, token=None, body=b"x"), status)
    for tried, (query, status) in QUERIES.items():
        await stage.expect(GROUP, tried, http(PUBLISH + query, token=None, body=b"x"), status)
    for target in ("/v2/batch", "/v2/messages/m", "/v2/keys", "/dispatcher/", "/", "/metrics", "/status"):
        await stage.expect(GROUP, f"{target} without a token", http(target, token=None, body=b"[]"), 401)
    sent = list(zip(stage.upstream.heads, stage.upstream.bodies, strict=True))[before:]
    whole = b"".join(head + body for head, body in sent)
    is_clean = not any(one.encode() in whole for one in (CALLER, OTHER))
    stage.report.add(GROUP, "a caller's token at the upstream", f"in none of {len(sent)} requests", is_clean)
    line = f"\r\nAuthorization: Bearer {OWNER}\r\n".encode()
    is_owner = all(head.count(line) == 1 and head.lower().count(b"\nauthorization:") == 1 for head, _ in sent)
    stage.report.add(GROUP, "what the upstream is presented", "its own token, once a request", is_owner)


async def attack_open(stage: Stage) -> None:
    """A sidecar without authentication, from a page that a browser on its machine shows."""
    await stage.expect(
        "start", "without authentication, a program", http(PUBLISH, token=None, body=b"x"), 200
    )
    for line in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
        data = http(PUBLISH, line, "Content-Type: text/plain", token=None, body=b"x")
        await stage.expect("start", f"without authentication, a page: {line}", data, 401)
    data = http("/v2/keys", method="GET", token=None)
    await stage.expect("start", "without authentication, an owner's path", data, 403)


async def attack_start(report: Report) -> None:
    """Without authentication, on an address that others reach: it must not start."""
    env = environment("http://127.0.0.1:9", OWNER)
    hosts = ("0.0.0.0", "::", "example.com")
    words = [("--port", "0", "--host", host, "--serve-authentication", "none") for host in hosts]
    for host, (code, said) in zip(
        hosts, await asyncio.gather(*(refused(*one, env=env) for one in words)), strict=True
    ):
        is_right = code == 2 and "would let everyone who reaches" in said and OWNER not in said
        report.add("start", f"no authentication on {host}", f"exit {code}: {said}", is_right)


# ------------------------------------------------------------------------------------------ where it is seen


async def attack_secrets(stage: Stage, env: dict[str, str]) -> None:
    """Have the upstream quote its token wherever it can, then look for it in everything there is to see."""
    answers = [
        await stage.ask(http(PUBLISH, body=b"quote-my-token")),
        await stage.ask(http(PUBLISH, body=b"quote-my-token \xff")),
        await stage.ask(http("/v2/batch", body=b'[{"destination":"https://e.x","body":"quote-my-token"}]')),
        await stage.ask(
            http(
                "/v2/batch",
                "Content-Type: application/x-ndjson",
                body=b'{"destination":"https://e.x","body":"quote-my-token"}\n',
            )
        ),
        await stage.ask(http("/v2/messages/quote", method="GET"), "GET"),
        await stage.ask(http("/v2/messages/moved-307", method="GET"), "GET"),
        await stage.ask(http("/v2/messages/quote", method="DELETE"), "DELETE"),
    ]
    for answer in answers:
        is_clean = answer is not None and OWNER not in f"{answer!r} {answer.headers} {answer.body!r}"
        stage.report.add("secrets", "the upstream quotes its token", came(answer), is_clean)
    _look(stage, "all answers to callers", b"\n".join(stage.said))
    for path in ("/", "/metrics", "/status", "/livez", "/readyz", "/no-such-page"):
        async with stage.process.session.get(f"http://127.0.0.1:{stage.admin}{path}") as response:
            text = f"{response.headers}".encode() + await response.read()
        _look(stage, f"admin {path}", text)
    async with stage.process.session.get(f"http://127.0.0.1:{stage.admin}/status/stream") as response:
        events = [await response.content.readuntil(b"\n\n") for _ in range(2)]
        _look(stage, "admin /status/stream", b"".join(events))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "check"),
        env={**env, "QSTASH_URL": stage.upstream.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        said, _ = await process.communicate()
    _look(stage, "dispatcher check", said)
    look_at_log(stage)


def look_at_log(stage: Stage) -> None:
    """All of it, at the level debug."""
    _look(stage, "the log, at debug", stage.process.log.encode())


def attack_reprs(report: Report) -> None:
    """What a debugger or an error tracker would print."""
    config, serve = Config(token=OWNER), ServeSettings(tokens=f"{CALLER},{OTHER}")
    things = [
        config,
        serve,
        SidecarConfig(config, serve, SECRETS),
        Guard(SECRETS, OWNER),
        Proxy(config, serve),
    ]
    for one in things:
        text = f"{one!r} {one}"
        report.add(
            "secrets", f"repr of {type(one).__name__}", f"{len(text)} characters", not _found(text.encode())
        )


def _look(stage: Stage, where: str, text: bytes) -> None:
    found = _found(text)
    came_of_it = f"{len(found)} tokens in {len(text)} bytes"
    stage.report.add("secrets", where, came_of_it, not found and len(text) > 0)


def _found(text: bytes) -> list[str]:
    return [one for one in SECRETS if one.encode() in text]
