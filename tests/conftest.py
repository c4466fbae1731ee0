"""What every test shares: anyio's plugin on asyncio, and property tests that are the same in every run.

`--hypothesis-profile=search` looks for new examples instead.
"""

import pytest
from hypothesis import settings

# A time limit for an example would measure the machine's load, and a random one makes a suite that flakes.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
