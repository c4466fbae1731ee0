"""Replies by position: objects, arrays of URL groups, error entries; what does not match is unknown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.replies import (
    Accepted,
    AcceptedByGroup,
    NotAccepted,
    Outcome,
    Unclear,
    clip,
    error_text,
    read_receipts,
    read_reply,
    read_single_reply,
)
from dispatcher.message import Receipt

ENDPOINT = {"messageId": "a", "url": "https://a.example"}


def read(value: object, expected: int, *, is_group: bool = False) -> list[Outcome] | None:
    outcomes = read_reply(json.dumps(value).encode(), expected, is_group=is_group)
    return None if outcomes is None else list(outcomes)


def test_objects_in_order() -> None:
    """One outcome for each position, the service's id as it is."""
    assert read([{"messageId": "a"}, {"messageId": "b", "deduplicated": True}], 2) == [
        Accepted("a", False),
        Accepted("b", True),
    ]


def test_unknown_members_do_not_matter() -> None:
    """What the service may add later changes nothing."""
    assert read([{"messageId": "a", "url": "x", "n": 1}, {"messageId": "b", "deduplicated": None}], 2) == [
        Accepted("a", False),
        Accepted("b", False),
    ]


def test_a_group_between_urls() -> None:
    """The nested array of a URL group keeps its own position and its endpoints' order."""
    other = {"messageId": "b", "url": "https://b.example", "deduplicated": True}
    outcomes = read([{"messageId": "x"}, [ENDPOINT, other], {"messageId": "y"}], 3)
    assert outcomes is not None
    assert (outcomes[0], outcomes[2]) == (Accepted("x"), Accepted("y"))
    assert isinstance(outcomes[1], AcceptedByGroup)
    assert [(e.url, e.message_id, e.deduplicated, e.error) for e in outcomes[1].endpoints] == [
        ("https://a.example", "a", False, None),
        ("https://b.example", "b", True, None),
    ]


def test_an_error_entry_between_others() -> None:
    """Only it failed, with the service's words."""
    assert read([{"messageId": "a"}, {"error": "queue is full"}, {"messageId": "c"}], 3) == [
        Accepted("a"),
        NotAccepted("queue is full"),
        Accepted("c"),
    ]


def test_a_group_of_which_one_endpoint_failed_is_delivered() -> None:
    """The message is delivered; that endpoint carries the error, and no id."""
    outcomes = read([[ENDPOINT, {"url": "https://b.example", "error": "no"}], {"messageId": "y"}], 2)
    assert outcomes is not None
    assert isinstance(outcomes[0], AcceptedByGroup)
    assert [(e.message_id, e.error) for e in outcomes[0].endpoints] == [("a", None), (None, "no")]


def test_a_group_of_which_all_failed_is_an_error_entry() -> None:
    """None took it, and each says why."""
    outcomes = read([[{"url": "u", "error": "one"}, {"url": "v", "error": "two"}], {"messageId": "y"}], 2)
    assert outcomes is not None
    assert outcomes[0] == NotAccepted("one; two")


def test_a_group_without_ids_and_errors_is_unclear() -> None:
    """It may have been taken."""
    outcomes = read([[{"url": "u"}], {"messageId": "y"}], 2)
    assert outcomes is not None
    assert isinstance(outcomes[0], Unclear)


def test_an_empty_group() -> None:
    """A group without endpoints took the message: an empty array at its position."""
    assert read([[], {"messageId": "y"}], 2) == [AcceptedByGroup(()), Accepted("y")]
    assert read([[]], 1, is_group=True) == [AcceptedByGroup(())]


def test_one_item_unwrapped() -> None:
    """A reply to one item may come without its outer array, for a URL and for a group."""
    assert read({"messageId": "a"}, 1) == [Accepted("a")]
    assert read([{"messageId": "a"}], 1) == [Accepted("a")]
    assert read({"error": "no"}, 1) == [NotAccepted("no")]
    for value in ([[ENDPOINT]], [ENDPOINT]):
        outcomes = read(value, 1, is_group=True)
        assert outcomes is not None
        assert isinstance(outcomes[0], AcceptedByGroup)
        assert [endpoint.message_id for endpoint in outcomes[0].endpoints] == ["a"]


def test_an_unwrapped_group_of_two_is_one_outcome() -> None:
    """Two endpoints of the one group that was asked are no two items."""
    outcomes = read([ENDPOINT, {"messageId": "b", "url": "v"}], 1, is_group=True)
    assert outcomes is not None
    assert len(outcomes) == 1


@pytest.mark.parametrize(
    "value", [[], [{"messageId": "a"}], [{"messageId": "a"}] * 3, {"messageId": "a"}, "a", None]
)
def test_a_wrong_length_is_no_answer(value: object) -> None:
    """A reply of another length or shape matches nothing: no id is guessed."""
    assert read(value, 2) is None


def test_a_wrong_length_for_one_item() -> None:
    """Nor is one of two ids taken for the one URL that was asked."""
    assert read([{"messageId": "a"}, {"messageId": "b"}], 1) is None
    assert read([], 1) is None
    assert read([], 1, is_group=True) is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b'[{"messageId":"a"},', b"\xff\xfe", b"<html>", b"[" * 200_000, b'{"a":' * 200_000]
)
def test_unparsable(body: bytes) -> None:
    """What is not JSON, or nested without end, is no answer, and breaks nothing."""
    assert read_reply(body, 2, is_group=False) is None
    assert read_single_reply(body) is None
    assert isinstance(error_text(body), str)


def test_depth_inside_a_member_we_do_not_read() -> None:
    """Nesting without end breaks nothing where it hides in a member we skip."""
    body = b'[{"messageId":"a","x":' + b"[" * 200_000 + b"]" * 200_000 + b'},{"messageId":"b"}]'
    assert read_reply(body, 2, is_group=False) is None


@pytest.mark.parametrize(
    "entry", [None, 7, "m", {}, {"messageId": ""}, {"messageId": 7}, {"error": None}, [7]]
)
def test_entries_that_say_nothing_are_unclear(entry: object) -> None:
    """An entry with neither an id nor an error may have been taken."""
    outcomes = read([entry, {"messageId": "b"}], 2)
    assert outcomes is not None
    assert isinstance(outcomes[0], Unclear)
    assert outcomes[1] == Accepted("b")


def test_single_replies() -> None:
    """A publish answers with an object, or an array for a URL group."""
    assert read_single_reply(b'{"messageId":"a","deduplicated":true}') == Accepted("a", True)
    assert isinstance(read_single_reply(json.dumps([ENDPOINT]).encode()), AcceptedByGroup)
    assert isinstance(read_single_reply(b"7"), Unclear)
    assert read_single_reply(b'{"messageId":') is None


_leaf = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
_json = st.recursive(_leaf, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
    ["messageId", "error", "url", "deduplicated"]), inner), max_leaves=12)  # fmt: skip


@given(_json, st.integers(1, 4), st.booleans())
def test_an_id_is_never_guessed(value: object, expected: int, is_group: bool) -> None:
    """Whatever comes back: as many outcomes as items or none, and each id stands at its own position."""
    outcomes = read(value, expected, is_group=is_group)
    if outcomes is None:
        return
    assert len(outcomes) == expected
    entries = value if isinstance(value, list) and len(value) == expected else [value]
    if (
        is_group
        and expected == 1
        and value
        and isinstance(value, list)
        and all(isinstance(e, dict) for e in value)
    ):
        entries = [value]
    for entry, outcome in zip(entries, outcomes, strict=True):
        if isinstance(outcome, Accepted):
            assert isinstance(entry, dict)
            assert outcome.message_id == entry["messageId"]


def test_words_of_the_service_are_clipped() -> None:
    """One line, printable, bounded."""
    assert clip("a\nb\t c\x1b[31m") == "a b c?[31m"
    assert len(clip("x" * 1000)) == 301
    assert error_text(b'{"error":"bad"}') == "bad"
    assert error_text(b'{"error":{"code":7}}') == '{"error":{"code":7}}'
    assert error_text(b"[1]") == "[1]"


def test_endpoints_without_an_id() -> None:
    """An id that is no text or empty is none, an error that is no text is explained."""
    body = b'[[{"messageId":7,"url":"u"},{"messageId":"","error":3},{"messageId":"a"}]]'
    (outcome,) = read_reply(body, 1, is_group=True) or ()
    assert isinstance(outcome, AcceptedByGroup)
    assert [endpoint.message_id for endpoint in outcome.endpoints] == [None, None, "a"]
    assert [endpoint.url for endpoint in outcome.endpoints] == ["u", "", ""]
    why = "no messageId for this endpoint"
    assert [endpoint.error for endpoint in outcome.endpoints] == [why, why, None]


def test_an_error_that_is_no_text() -> None:
    """It is shown as it is."""
    (outcome,) = read_reply(b'[{"error":{"code":7}}]', 1, is_group=False) or ()
    assert outcome == NotAccepted("{'code': 7}")


# ------------------------------------------------------------------------------------- receipts in one go


def taken(value: object, expected: int) -> list[Receipt] | None:
    return read_receipts(json.dumps(value).encode(), expected)


def test_receipts_of_a_batch_of_which_all_was_taken() -> None:
    """One for each position, with what the service says and nothing else."""
    assert taken([{"messageId": "a"}, {"messageId": "b", "deduplicated": True}], 2) == [
        Receipt("a", False, None, 1, False, ()),
        Receipt("b", True, None, 1, False, ()),
    ]


@pytest.mark.parametrize(
    "strange",
    [
        {"attempts": 7},
        {"endpoints": [{"url": "u"}]},
        {"deduplication_id": "x", "deduplicationId": "x"},
        {"duplicate_possible": True, "duplicatePossible": True},
        {"message_id": "x"},
        {"url": "https://a.example", "state": {"deep": [1, None]}},
    ],
)
def test_fields_of_the_service_do_not_reach_a_receipt(strange: dict[str, object]) -> None:
    """Whatever they are called and hold: only `messageId` and `deduplicated` are read."""
    assert taken([{**strange, "messageId": "a"}], 1) == [Receipt("a")]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"messageId": None},
        {"messageId": ""},
        {"messageId": 7},
        {"messageId": ["a"]},
        {"message_id": "a"},
        {"error": "no"},
        {"messageId": None, "error": "no"},
        {"messageId": "a", "deduplicated": "yes"},
        {"messageId": "a", "deduplicated": None},
        [{"messageId": "a", "url": "u"}],
        [],
        "a",
        7,
        None,
    ],
)
def test_one_entry_that_is_not_plain_leaves_all_to_the_careful_way(entry: object) -> None:
    """Wherever it stands."""
    assert taken([entry, {"messageId": "b"}], 2) is None
    assert taken([{"messageId": "b"}, entry], 2) is None


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[", b"null", b"{}", b"[]", b"\xff", b"[" * 100_000),
        *(b'[{"messageId":"a"}', b'[{"messageId":"a"}]x', b'{"messageId":"a"}', b'[{"messageId":"a"}]'),
        b'[{"messageId":"\xff"},{"messageId":"b"}]',
    ],
)
def test_a_body_that_does_not_match_has_no_receipts(body: bytes) -> None:
    """Too few, too many, no array, no JSON."""
    assert read_receipts(body, 2) is None


_entries = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "messageId": st.sampled_from(["a", "b", "é", "", None, 7]),
            "deduplicated": st.sampled_from([True, False, None, 1, "yes"]),
            "error": st.sampled_from(["no", None]),
            "url": st.just("u"),
            "attempts": st.integers(),
        },
    ),
    st.sampled_from([None, [], [ENDPOINT], "a", 7]),
)


@given(st.lists(_entries, max_size=4), st.integers(0, 4))
def test_receipts_say_what_the_careful_way_says(entries: list[object], expected: int) -> None:
    """If there are any at all: the same ids, in the same places."""
    body = json.dumps(entries).encode()
    receipts = read_receipts(body, expected)
    if receipts is not None:
        careful = read_reply(body, expected, is_group=False)
        assert careful == tuple(Accepted(str(one.message_id), one.deduplicated) for one in receipts)
        assert all(one == Receipt(one.message_id, one.deduplicated) for one in receipts)
