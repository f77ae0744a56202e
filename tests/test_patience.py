"""Which failures of the Hub pass, and how long is waited for that."""

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from hf_lmmixup import patience


class Answer:
    """What the client keeps of a response."""

    def __init__(self, status, headers=()):
        self.status_code, self.headers, self.request = status, dict(headers), None


def failure(status, headers=()):
    return HfHubHTTPError(f"answer {status} for hf_abcdefghijklmnopqrst", response=Answer(status, headers))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (failure(429), True),
        (failure(409), True),
        (failure(412), True),
        (failure(503), True),
        (HTTPError("connection lost"), True),
        (failure(400), False),  # what is wrong now is wrong later
        (failure(401), False),
        (failure(403), False),
        (failure(404), False),
        (ValueError("ours"), False),
    ],
)
def test_failures_that_pass(error, expected):
    assert patience.passes(error) is expected


@pytest.fixture
def waits(monkeypatch):
    """How long each wait was; nobody waits."""
    seconds = []
    monkeypatch.setattr(patience.time, "sleep", seconds.append)
    return seconds


def request_that_fails(*errors):
    left = list(errors)

    def request():
        if left:
            raise left.pop(0)
        return "done"

    return request


def test_waits_grow_and_are_drawn(waits):
    assert patience.insist(request_that_fails(*[failure(503)] * 4)) == "done"
    assert all(2**attempt / 2 <= seconds <= 2**attempt for attempt, seconds in enumerate(waits)) and len(waits) == 4


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("5", 5), ("86400", patience.LONGEST_WAIT_S)],  # no server makes us wait for a day
)
def test_the_server_says_how_long(waits, asked, seconds):
    patience.insist(request_that_fails(failure(429, {"Retry-After": asked})))
    assert waits == [seconds]


def test_a_date_as_retry_after_is_not_followed(waits):
    patience.insist(request_that_fails(failure(429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})))
    assert waits[0] <= 1


def test_what_does_not_pass_is_raised_at_once(waits):
    with pytest.raises(HfHubHTTPError, match="answer 403"):
        patience.insist(request_that_fails(failure(403)))
    assert waits == []


def test_patience_ends(waits):
    with pytest.raises(HfHubHTTPError):
        patience.insist(request_that_fails(*[failure(503)] * 100))
    assert len(waits) == patience.ATTEMPTS - 1


def test_a_failure_in_one_line_without_secrets():
    assert patience.first_line(failure(503)) == "answer 503 for [secret]"
    assert patience.first_line(HTTPError("")) == "HTTPError"
