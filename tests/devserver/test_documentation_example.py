"""The service documentation's own example of a batch, sent as raw bytes."""

from __future__ import annotations

import pytest

from dispatcher.testing import local_upstream
from tests.devserver.support import Connection

EXAMPLE = b"""[
  {
    "destination": "myUrlGroup",
    "headers": {
      "Upstash-Delay": "5s",
      "Upstash-Forward-Hello": "123456"
    },
    "body": "Hello World"
  },
  {
    "queue": "test",
    "destination": "https://example.com/destination2"
  },
  {
    "destination": "https://example.com/destination3",
    "headers": {
      "Upstash-Delay": "7s"
    }
  },
  {
    "destination": "https://example.com/destination4",
    "headers": {
      "Upstash-Delay": "9s"
    }
  }
]"""


@pytest.mark.anyio
async def test_the_documentation_s_example() -> None:
    """A URL group, a queue without a body and two delayed URLs: the reply is nested at the group only."""
    async with local_upstream() as upstream:
        connection = await Connection.to(upstream)
        endpoints = [{"url": "https://one.example"}, {"url": "https://two.example", "name": "two"}]
        status, _ = await connection.ask("POST", "/v2/topics/myUrlGroup/endpoints", {"endpoints": endpoints})
        assert status == 200
        status, reply = await connection.ask("POST", "/v2/batch", EXAMPLE)
        assert status == 200
        group, *others = reply
        assert [set(entry) for entry in group] == [{"messageId", "url"}] * 2
        assert [entry["url"] for entry in group] == ["https://one.example", "https://two.example"]
        assert [set(entry) for entry in others] == [{"messageId"}] * 3
        ids = [entry["messageId"] for entry in (*group, *others)]
        assert len(set(ids)) == 5
        seen = [(await connection.ask("GET", f"/v2/messages/{one}"))[1] for one in ids]
        await connection.close()
        assert [row.body for row in upstream.accepted()] == [b"Hello World", b"", b"", b""]
    assert [message.get("topicName") for message in seen] == ["myUrlGroup", "myUrlGroup", None, None, None]
    assert [message.get("endpointName") for message in seen] == [None, "two", None, None, None]
    assert [message.get("queueName") for message in seen] == [None, None, "test", None, None]
    assert [message["notBefore"] - message["createdAt"] for message in seen] == [5000, 5000, 0, 7000, 9000]
    assert seen[0]["header"] == {"Hello": ["123456"]}
    assert seen[0]["body"] == "Hello World"
    assert "body" not in seen[2]
