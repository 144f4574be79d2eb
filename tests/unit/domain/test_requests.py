"""The request ids that a job remembers."""

from __future__ import annotations

from livetuned.domain import limits
from livetuned.domain.requests import Requests


def test_one_more_does_not_change_the_ones_before() -> None:
    before = Requests({"one": 3})
    after = before.remembering("two", 5)
    assert (0, 5) == (before.get("two"), after.get("two"))
    assert [("one", 3)] == list(before.items())
    assert [("one", 3), ("two", 5)] == list(after.items())
    assert "two" in after
    assert "two" not in before
    assert (1, 2) == (len(before), len(after))


def test_what_a_failed_commit_left_is_not_seen_by_what_follows() -> None:
    """Both follow the same state under the same revision; only the second was committed."""
    before = Requests({"one": 3})
    failed = before.remembering("lost", 4).remembering("lost too", 5)
    committed = before.remembering("kept", 4)
    later = committed.remembering("next", 5)
    assert [("one", 3), ("kept", 4), ("next", 5)] == list(later.items())
    assert (0, 0) == (later.get("lost"), later.get("lost too"))
    assert (4, 5) == (failed.get("lost"), failed.get("lost too"))


def test_an_id_used_again_counts_from_its_newest_use() -> None:
    again = Requests({"one": 3, "two": 4}).remembering("one", 9)
    assert [("two", 4), ("one", 9)] == list(again.items())


def test_the_oldest_are_dropped_and_the_newest_kept() -> None:
    requests = Requests()
    count = 3 * limits.REQUEST_IDS_PER_JOB
    for number in range(1, count):
        requests = requests.remembering(str(number), number)
        assert number == requests.get(str(number))
    assert limits.REQUEST_IDS_PER_JOB <= len(requests) < limits.REQUEST_IDS_PER_JOB + 300
    assert all(requests.get(str(number)) for number in range(count - limits.REQUEST_IDS_PER_JOB, count))


def test_equal_is_what_remembers_the_same() -> None:
    assert Requests({"one": 3}).remembering("two", 5) == Requests({"one": 3, "two": 5})
    assert Requests({"one": 3}) != Requests({"one": 4})
