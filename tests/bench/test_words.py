"""What is asked for in words, what the messages are, and the guard before the real service."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from dispatcher.bench import words
from dispatcher.bench.find import Goal
from dispatcher.bench.guard import check_target, is_real_service
from dispatcher.bench.messages import Mix
from dispatcher.bench.schedule import Burst
from dispatcher.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("250ms", 0.25), ("5m", 300.0), ("1.5h", 5_400.0), ("2", 2.0)]
)
def test_durations(text: str, seconds: float) -> None:
    """With a unit, or seconds."""
    assert words.duration("duration", text) == seconds


def test_the_other_forms() -> None:
    """Sizes, steps, bursts, destinations, goals."""
    assert words.sizes("body", "200") == (200, 200)
    assert words.sizes("body", "0-2,000") == (0, 2_000)
    assert words.rates("steps", "1000,2.5e3") == [1_000.0, 2_500.0]
    assert words.burst("bursts", "500@2s") == Burst(500, 2.0)
    assert words.destinations("destinations", "3") == tuple(
        f"https://example.com/bench/{n}" for n in range(3)
    )
    assert words.destinations("destinations", "https://a.example,group") == ("https://a.example", "group")
    assert words.goal("find", "p99.9=50ms") == Goal(0.999, 0.05)
    assert words.goal("find", "max=1s") == Goal(1.0, 1.0)
    assert [Goal(share, 1).name for share in (0.5, 0.999, 1.0)] == ["p50", "p99.9", "max"]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((words.duration, text) for text in ("", "0s", "-1s", "1d", "nan", "s", "9999h")),
        *((words.rate, text) for text in ("", "0", "-5", "nan", "inf", "fast")),
        *((words.rates, text) for text in ("1,,2", "1,0")),
        *((words.burst, text) for text in ("5", "0@1s", "5@", "@1s", "5@0s")),
        *((words.sizes, text) for text in ("", "5-3", "-1", "a", "1-99999999999")),
        *((words.goal, text) for text in ("p99", "p0=1s", "p100=1s", "q9=1s", "p99=", "max=0s", "p99=fast")),
        (words.destinations, "0"),
    ],
)
def test_what_is_wrong_is_told(read: object, text: str) -> None:
    """With the option's name, and what would be right."""
    with pytest.raises(ConfigError, match=r"^option: .*allowed"):
        read("option", text)  # type: ignore[operator]


def test_messages_are_of_the_mix() -> None:
    """Sizes within the range and all over it, queues and destinations in turn, a share of it in queues."""
    mix = Mix(
        body_least=5, body_most=9, queues=3, queue_share=0.25, destinations=("https://a", "https://b"), seed=2
    )
    made = list(islice(mix.messages(), 1_200))
    sizes = Counter(len(one.body or "") for one in made)
    assert set(sizes) == {5, 6, 7, 8, 9}
    assert Counter(one.queue for one in made) == {None: 900, "bench-0": 100, "bench-1": 100, "bench-2": 100}
    assert Counter(one.destination for one in made) == {"https://a": 600, "https://b": 600}
    assert [one.body for one in islice(mix.messages(), 50)] == [one.body for one in made[:50]]
    assert len({one.body for one in islice(Mix().messages(), 1_000)}) == 1_000


@pytest.mark.parametrize(
    ("url", "is_real"),
    [
        ("https://qstash.upstash.io", True),
        ("https://qstash-us-east-1.UPSTASH.io./prefix", True),
        ("http://upstash.io:8080", True),
        ("https://upstash.io.example.com", False),
        ("https://notupstash.io", False),
        ("http://127.0.0.1:8089/upstash.io", False),
    ],
)
def test_the_real_service_is_known(url: str, *, is_real: bool) -> None:
    """By its host, in any region and spelling."""
    assert is_real_service(url) is is_real


def test_the_real_service_needs_three_words() -> None:
    """That it is meant, a bound, and destinations of one's own; another upstream needs none."""
    url = "https://qstash.upstash.io"
    with pytest.raises(ConfigError, match=r"real service.*--real-service and --max-messages"):
        check_target(url, is_meant=False, max_messages=5, has_destinations=True)
    with pytest.raises(ConfigError, match=r"^max-messages: .*at most"):
        check_target(url, is_meant=True, max_messages=None, has_destinations=True)
    with pytest.raises(ConfigError, match=r"^destinations: .*of your own"):
        check_target(url, is_meant=True, max_messages=5, has_destinations=False)
    check_target(url, is_meant=True, max_messages=5, has_destinations=True)
    check_target("http://127.0.0.1:1", is_meant=False, max_messages=None, has_destinations=False)
