"""The upstream behind a fault plan, in virtual time: what a client would see, and what was accepted."""

from __future__ import annotations

import orjson
import pytest

from dispatcher.devserver.faults import FaultPlan
from dispatcher.devserver.responder import FaultyUpstream
from dispatcher.devserver.upstream import Upstream
from tests.devserver.support import URL, post

# -- behind a fault plan ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "accepted"),
    [
        ("throttle_burst", 429, 0),
        ("throttle_daily", 429, 0),
        ("throttle_bare", 429, 0),
        ("unavailable", 503, 0),
        ("error_before", 500, 0),
        ("error_after", 500, 2),
        ("bad_gateway", 502, 0),
        ("gateway_timeout", 504, 2),
        ("disconnect_before", None, 0),
        ("disconnect_after", None, 2),
        ("hang_before", None, 0),
        ("hang_after", None, 2),
        ("truncate", 200, 2),
        ("unparsable", 200, 2),
        ("wrong_length", 200, 2),
        ("drip", 200, 2),
    ],
)
def test_each_fault_strikes_on_its_side_of_acceptance(kind: str, status: int | None, accepted: int) -> None:
    """What the client sees and what was accepted are as the table of kinds says."""
    faulty = FaultyUpstream(Upstream(), FaultPlan.parse(f"{kind}=1 latency=5ms").injector())
    reply = post(faulty, [{"destination": URL}] * 2)
    assert (reply.status, reply.accepted, reply.accepted_before_reply) == (status, accepted, accepted > 0)
    assert len(faulty.upstream.ledger) == accepted
    assert faulty.faults == {kind: 1}
    assert reply.truncated == (kind == "truncate")
    assert bool(reply.drip_over) == (kind == "drip")
    assert reply.latency == (float("inf") if kind.startswith("hang") else 0.005)
    if kind == "wrong_length":
        assert len(orjson.loads(reply.body)) == 1
    if kind in ("truncate", "unparsable"):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(reply.body)


def test_error_entries_can_spare_queues() -> None:
    """`error_unqueued` strikes what is not of a queue, and counts as the error entry that it is."""
    faulty = FaultyUpstream(Upstream(), FaultPlan.parse("error_unqueued=1").injector())
    reply = post(faulty, [{"destination": URL, "queue": "q"}, {"destination": URL}, {"destination": URL}])
    assert [set(entry) for entry in orjson.loads(reply.body)] == [{"messageId"}, {"error"}, {"error"}]
    assert [row.queue for row in faulty.upstream.ledger.rows()] == ["q"]
    assert faulty.faults == {"error_entry": 2}


def test_faults_are_exact_for_a_seed() -> None:
    """Two upstreams with the same seed answer a whole run alike, byte for byte."""
    plan = FaultPlan.parse(
        "error_after=0.2 truncate=0.2 error_entry=0.1 throttle_bare=0.1 latency=exponential(1ms)"
    )
    runs = []
    for _ in range(2):
        faulty = FaultyUpstream(Upstream(), plan.injector(42))
        batches = [[{"destination": URL, "body": f"{n}-{m}"} for m in range(20)] for n in range(50)]
        runs.append(([post(faulty, batch, float(n)) for n, batch in enumerate(batches)], faulty.faults))
    assert runs[0] == runs[1]
    assert runs[0][1]["error_entry"] > 20


def test_poison_refuses_every_batch_it_travels_in() -> None:
    """A marker in a body makes the whole batch 400 or 500, each time, without naming the culprit."""
    plan = FaultPlan.parse("poison_400=POISON poison_500=TOXIC")
    faulty = FaultyUpstream(Upstream(), plan.injector())
    good, bad, toxic = ({"destination": URL, "body": body} for body in ("fine", "a POISON b", "TOXIC"))
    for _ in range(3):
        assert post(faulty, [good, bad]).status == 400
        assert post(faulty, [toxic, good]).status == 500
    assert post(faulty, [good]).status == 200
    assert b"POISON" not in post(faulty, [bad]).body
    assert faulty.faults == {"poison_400": 4, "poison_500": 3}
    assert faulty.respond("/v2/publish/https://a.example", b"POISON").status == 400
    assert len(faulty.upstream.ledger) == 1


def test_an_outage_goes_before_poison() -> None:
    """A proxy in trouble never looks at the body."""
    faulty = FaultyUpstream(Upstream(), FaultPlan.parse("unavailable=1 poison_400=POISON").injector())
    assert post(faulty, [{"destination": URL, "body": "POISON"}]).status == 503


def test_an_invalid_batch_is_refused_also_under_faults_that_spoil_replies() -> None:
    """A fault that strikes after acceptance does not turn a refusal into silence, nor is it counted."""
    faulty = FaultyUpstream(Upstream(), FaultPlan.parse("hang_after=1").injector())
    reply = post(faulty, [{"destination": ""}])
    assert (reply.status, reply.latency, dict(faulty.faults)) == (400, 0.0, {})


# -- single messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "destination", "queue"),
    [
        ("/v2/publish/https://a.example//x/../y", "https://a.example//x/../y", None),
        ("/v2/publish/https://a.example/%2F%20?q=%41&&r", "https://a.example/%2F%20?q=%41&&r", None),
        ("/v2/publish/https://a.example/?", "https://a.example/?", None),
        ("/v2/publish/https://a.example/?a=1&qstash_token=t&b=2", "https://a.example/?a=1&b=2", None),
        ("/v2/publish/https://a.example/?qstash_token=t", "https://a.example/", None),
        ("/v2/publish/api/llm", "api/llm", None),
        ("/v2/enqueue/q-1/https://a.example/x?y", "https://a.example/x?y", "q-1"),
    ],
)
def test_the_destination_is_the_raw_target(target: str, destination: str, queue: str | None) -> None:
    """Nothing is decoded or collapsed; only query keys addressed to the service are taken out."""
    faulty = FaultyUpstream(Upstream(keep_bodies=True))
    assert faulty.respond(target, b"\xff\x00").status == 200
    row = faulty.upstream.ledger.row(0)
    assert (row.destination, row.queue, row.body) == (destination, queue, b"\xff\x00")


def test_options_of_a_single_message_are_request_headers() -> None:
    """Upstash-* and Content-Type count, from headers and query; others do not, unless all are forwarded."""
    faulty = FaultyUpstream(Upstream())
    lines = (
        ("Content-Type", "text/x"),
        ("Host", "h"),
        ("X-Own", "1"),
        ("upstash-forward-a", "1"),
        ("Upstash-Forward-A", "2"),
    )
    target = "/v2/publish/https://a.example/?Upstash-Retries=7&upstash-label=a%20b"
    faulty.respond(target, b"", lines)
    options = faulty.upstream.ledger.options[0]
    assert options.retries == 7
    assert options.value("upstash-label") == "a b"
    assert options.delivered() == {"a": ["1"], "A": ["2"], "Content-Type": ["text/x"]}
    faulty.respond(target, b"", (*lines, ("Upstash-Header-Forward", "true"), ("Authorization", "Bearer t")))
    assert faulty.upstream.ledger.options[1].delivered().get("X-Own") == ["1"]
    assert "Authorization" not in faulty.upstream.ledger.options[1].delivered()


def test_a_deduplicated_publish_is_202() -> None:
    """200 for a new message, 202 where nothing was enqueued, 404 and 400 as in a batch."""
    faulty = FaultyUpstream(Upstream())
    header = (("Upstash-Deduplication-Id", "x"),)
    assert [faulty.respond("/v2/publish/https://a.example", b"", header).status for _ in range(2)] == [
        200,
        202,
    ]
    assert faulty.respond("/v2/publish/nobody", b"").body == b'{"error":"URL group nobody not found"}'
    assert faulty.respond("/v2/publish/", b"").status == 400
    assert faulty.respond("/v2/enqueue/a%20b/https://a.example", b"").status == 400
