"""The README's examples for Flask and Django, as they stand there, driven by each framework's own client."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import django
import pytest
from django.conf import settings
from django.test import Client
from django.urls import path

from dispatcher import BlockingDispatcher
from dispatcher.testing import local_upstream
from tests.test_embedding import example, point_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.testing import LocalUpstream

urlpatterns: list[Any] = []
"""Django's routes: this module is its ROOT_URLCONF."""


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalUpstream]:
    """A local upstream in a thread of its own, and the environment that names it."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(local_upstream(faults="error_after=0.2", seed=3)) as upstream,
    ):
        point_at(upstream, monkeypatch)
        yield upstream


@contextmanager
def closed_after(namespace: dict[str, Any]) -> Iterator[None]:
    """Close an example's dispatcher at the end, as the end of its process would."""
    dispatcher = namespace["dispatcher"]
    assert isinstance(dispatcher, BlockingDispatcher)
    try:
        yield
    finally:
        dispatcher.close()


def test_flask(upstream: LocalUpstream) -> None:
    """A view puts a message; what the requests handed in is delivered, each once."""
    namespace = example("Flask")
    with closed_after(namespace):
        client = namespace["app"].test_client()
        assert [client.post("/orders").status_code for _ in range(20)] == [202] * 20
    assert [row.body for row in upstream.accepted()] == [b'{"order":1}'] * 20


def test_django(upstream: LocalUpstream) -> None:
    """A view sends a message and answers with the service's own id for it."""
    namespace = example("Django")
    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], SECRET_KEY="tests")
        django.setup()
    urlpatterns[:] = [path("orders", namespace["order"])]
    with closed_after(namespace):
        responses = [Client().post("/orders") for _ in range(5)]
    assert [response.status_code for response in responses] == [201] * 5
    ids = [str(response.content, "ascii") for response in responses]
    assert ids == [row.message_ids[0] for row in upstream.accepted()]
