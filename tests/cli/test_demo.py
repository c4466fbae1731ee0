"""`dispatcher demo` as a user runs it, and that its check can fail."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dispatcher import Message, MessageRejected, Receipt
from dispatcher.cli.audit import Sent, audit
from dispatcher.testing import digest_of

URL = "https://example.com/x"


def demo(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher", "demo", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def count(table: str, name: str) -> int:
    found = re.search(rf"^  {name}\s+([\d,]+)$", table, re.MULTILINE)
    assert found, f"no row {name!r} in:\n{table}"
    return int(found[1].replace(",", ""))


def test_demo_accounts_for_every_message() -> None:
    """The run of the README, at its full size: exit 0 and the table."""
    code, table, errors = demo()
    assert code == 0, table + errors
    assert count(table, "sent") == 20_000
    assert count(table, "delivered") == count(table, "accepted upstream") == 19_990
    for name in ("lost", "duplicated", "out of order in a queue", "callers never answered"):
        assert count(table, name) == 0
    assert count(table, "faults injected") > 20


def test_control_finds_duplicates() -> None:
    """An upstream without deduplication: the same check finds what it is there for, and fails."""
    code, table, errors = demo("--control", "--messages", "10000")
    assert code == 1, table + errors
    assert count(table, "duplicated") > 0
    assert count(table, "lost") == 0
    assert "FAILED" in errors


def test_chaos_accounts_for_every_message() -> None:
    """Every fault, the proxy, the upstream killed and restarted: all delivered once, in order."""
    code, table, errors = demo("--chaos", "--messages", "6000")
    assert code == 0, table + errors
    assert count(table, "delivered") == count(table, "accepted upstream") == 5_996
    for name in ("lost", "duplicated", "out of order in a queue", "callers never answered"):
        assert count(table, name) == 0
    assert count(table, "upstream killed and restarted") > 0
    assert count(table, "faults injected by the proxy") > 0
    assert count(table, "messages whose answer was lost") > 0


def test_chaos_control_finds_duplicates() -> None:
    """The same chaos without the upstream's deduplication: duplicates, and exit code 1."""
    code, table, errors = demo("--chaos", "--control", "--messages", "6000")
    assert code == 1, table + errors
    assert count(table, "duplicated") > 0
    assert count(table, "lost") == 0


def test_chaos_without_deduplication_reports_the_unknown() -> None:
    """Doubled none, and as many unknown as answers were lost."""
    code, table, errors = demo("--chaos", "--deduplication", "off", "--messages", "20000")
    assert code == 0, table + errors
    unknown = count(table, "failed as unknown")
    assert 0 < unknown == count(table, "messages whose answer was lost")
    assert count(table, "delivered") + unknown == 20_000
    assert count(table, "duplicated") == count(table, "lost") == 0


def test_wrong_usage_is_exit_code_2() -> None:
    """A clear line instead of a trace."""
    code, _, errors = demo("--messages", "1")
    assert code == 2
    assert "messages: 1 is not allowed" in errors
    assert demo("--faults", "typo=0.1")[0] == 2
    assert demo("--deduplication", "off", "--control")[0] == 2


def row(message: Message, seq: int, message_id: str) -> dict[str, object]:
    body = message.body
    assert body is None or isinstance(body, str | bytes)
    digest = digest_of(message.destination, message.queue, body).hex()
    return {"digest": digest, "seq": seq, "messageIds": [message_id]}


@pytest.mark.parametrize(
    ("ids", "finding"),
    [
        ((), "lost"),
        (("m",), ""),
        (("m", "n"), "duplicated"),
        (("other",), "misattributed"),
    ],
)
def test_audit_finds(ids: tuple[str, ...], finding: str) -> None:
    """Each kind of damage has its own count."""
    message = Message(URL, "body")
    sent = [Sent(message, 0, Receipt("m"))]
    found = audit(sent, [row(message, seq, one) for seq, one in enumerate(ids)])
    assert {name for name in ("lost", "duplicated", "misattributed") if getattr(found, name)} == (
        {finding} if finding else set()
    )
    assert found.holds is not bool(finding)


def test_audit_finds_disorder_denial_silence_and_strangers() -> None:
    """The rest of the damage it looks for."""
    first, second = (Message(URL, body, queue="q") for body in "ab")
    sent = [Sent(first, 0, Receipt("1")), Sent(second, 1, Receipt("2"))]
    assert audit(sent, [row(second, 0, "2"), row(first, 1, "1")]).out_of_order == 1
    rejected = MessageRejected("no", status=400, message=first)
    assert audit([Sent(first, 0, rejected)], [row(first, 0, "1")]).denied == 1
    assert audit([Sent(first, 0)], []).unheard == 1
    assert audit([], [row(first, 0, "1")]).foreign == 1
