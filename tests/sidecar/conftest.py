"""What is made once for all tests of the sidecar."""

from __future__ import annotations

import pytest

from tests.sidecar.javascript_support import Node, installed


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The official JavaScript SDK, installed."""
    return installed(tmp_path_factory.mktemp("javascript"))
