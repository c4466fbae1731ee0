"""Who may ask: header or query, the caller's tokens or the upstream's own, compared in constant time."""

from __future__ import annotations

import hmac

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from dispatcher.sidecar.guard import Caller, Guard

OWN = "upstream-token"


def headers(authorization: str | None = None) -> CIMultiDictProxy[str]:
    given = {} if authorization is None else {"authorization": authorization}
    return CIMultiDictProxy(CIMultiDict(given))


@pytest.mark.parametrize(
    ("authorization", "caller"),
    [
        (f"Bearer {OWN}", Caller.OWNER),
        ("Bearer one", Caller.CALLER),
        ("Bearer two", Caller.CALLER),
        ("bearer two", Caller.CALLER),
        ("Bearer   two ", Caller.CALLER),
        (None, Caller.NONE),
        ("", Caller.NONE),
        ("Bearer", Caller.NONE),
        ("Bearer ", Caller.NONE),
        ("two", Caller.NONE),
        ("Basic two", Caller.NONE),
        ("Bearer twoo", Caller.NONE),
        ("Bearer tw", Caller.NONE),
        ("Bearer TWO", Caller.NONE),
        ("Bearer one two", Caller.NONE),
        ("Bearer tw\udcc3", Caller.NONE),
        (f"Bearer {OWN}x", Caller.NONE),
    ],
)
def test_the_header(authorization: str | None, caller: Caller) -> None:
    """As the service's clients send it; nothing else, and nothing that only begins right."""
    assert Guard(("one", "two"), OWN).check("/v2/publish/x", headers(authorization)) is caller


@pytest.mark.parametrize(
    ("query", "caller"),
    [
        (f"qstash_token={OWN}", Caller.OWNER),
        ("a=b&qstash_token=one&c", Caller.CALLER),
        ("QSTASH_TOKEN=one", Caller.CALLER),
        ("%71stash_token=%6fne", Caller.CALLER),
        ("qstash_token=one&qstash_token=" + OWN, Caller.OWNER),
        ("qstash_token=" + OWN + "&qstash_token=wrong", Caller.OWNER),
        ("qstash_token=", Caller.NONE),
        ("qstash_token", Caller.NONE),
        ("qstash_token=One", Caller.NONE),
        ("token=one", Caller.NONE),
        ("xqstash_token=one", Caller.NONE),
        ("a=qstash_token=one", Caller.NONE),
        ("qstash_token=%ff", Caller.NONE),
    ],
)
def test_the_query(query: str, caller: Caller) -> None:
    """The key in any spelling that a server would take for it."""
    assert Guard(("one",), OWN).check(f"/v2/publish/x?{query}", headers()) is caller


def test_both_places() -> None:
    """One of them that is right suffices, and the better one counts."""
    guard = Guard(("one",), OWN)
    assert guard.check("/x?qstash_token=one", headers("Bearer wrong")) is Caller.CALLER
    assert guard.check("/x?qstash_token=wrong", headers("Bearer one")) is Caller.CALLER
    assert guard.check(f"/x?qstash_token={OWN}", headers("Bearer one")) is Caller.OWNER
    assert guard.check("/x?qstash_token=one", headers(f"Bearer {OWN}")) is Caller.OWNER


def test_the_upstreams_own_token_by_default() -> None:
    """The same string as a caller's and as the upstream's makes an owner."""
    guard = Guard((OWN,), OWN)
    assert guard.check("/x", headers(f"Bearer {OWN}")) is Caller.OWNER
    assert guard.check("/x", headers("Bearer x")) is Caller.NONE


def test_without_authentication() -> None:
    """Everyone is a caller, and only the upstream's own token makes more of one."""
    guard = Guard(("one",), OWN, "none")
    assert guard.check("/x", headers()) is Caller.CALLER
    assert guard.check("/x", headers("Bearer wrong")) is Caller.CALLER
    assert guard.check("/x", headers(f"Bearer {OWN}")) is Caller.OWNER


@pytest.mark.parametrize("name", ["Origin", "sec-fetch-site"])
def test_without_authentication_pages_in_a_browser_are_strangers(name: str) -> None:
    """Any site could have the browser of this machine publish; with a token it may."""
    guard = Guard(("one",), OWN, "none")
    page = {name: "null"}
    for extra, caller in (({}, Caller.NONE), ({"Authorization": "Bearer one"}, Caller.CALLER)):
        assert guard.check("/x", CIMultiDictProxy(CIMultiDict(page | extra))) is caller
    assert guard.check("/x?qstash_token=one", CIMultiDictProxy(CIMultiDict(page))) is Caller.CALLER
    assert guard.check("/x", CIMultiDictProxy(CIMultiDict({"Sec-Fetch-Mode": "cors"}))) is Caller.CALLER
    assert Guard(("one",), OWN).check("/x", CIMultiDictProxy(CIMultiDict(page))) is Caller.NONE


def test_other_tokens_from_now_on() -> None:
    """After a reload the old ones count no more."""
    guard = Guard(("one",), OWN)
    guard.set_tokens(("two",), "new-own")
    found = [guard.check("/x", headers(f"Bearer {one}")) for one in ("one", OWN, "two", "new-own")]
    assert found == [Caller.NONE, Caller.NONE, Caller.CALLER, Caller.OWNER]


def test_every_token_is_compared_whatever_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of comparisons, each of constant time, tells nothing of which token came near."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def noted(value: bytes, token: bytes) -> bool:
        compared.append(token)
        return compare(value, token)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    guard = Guard(("one", "two", "three"), OWN)
    for presented in ("one", "three", OWN, "wrong", ""):
        compared.clear()
        guard.check("/x", headers(f"Bearer {presented}"))
        assert compared == [OWN.encode(), b"one", b"two", b"three"], presented


def test_no_token_in_its_repr() -> None:
    """Whatever prints it."""
    assert repr(Guard(("one", "two"), OWN)) == "<Guard 2 tokens, strangers are none>"
