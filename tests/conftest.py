"""What every test shares: anyio's plugin on asyncio."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
