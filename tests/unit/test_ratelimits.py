"""What the server says about the account, in every shape that was seen, and in those of a server that lies."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from cbatch import ratelimits
from cbatch.pace import WINDOWS, Kind, Period, Said

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


# -- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, [], id="nothing said"),
        pytest.param({"retry-after": "5", "content-type": "application/json"}, [], id="nothing said about windows"),
        pytest.param(
            {
                "x-ratelimit-limit-requests-day": "14400",
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-remaining-requests-day": "13693",
                "x-ratelimit-remaining-tokens-minute": "60000",
                "x-ratelimit-reset-requests-day": "11726.2840924263",
                "x-ratelimit-reset-tokens-minute": "26.28409242630005",
            },
            [Said("requests", "day", 14400, 13693), Said("tokens", "minute", 60000, 60000)],
            id="the set captured on the wire",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests": "1,000", "x-ratelimit-remaining-requests": "999.5"},
            [Said("requests", "minute", 1000, 999.5)],
            id="a name without a window means the minute",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests": "1000", "x-ratelimit-limit-requests-minute": "30"},
            [Said("requests", "minute", 30, None)],
            id="the name with the window comes first",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests-second": "50", "x-ratelimit-limit-tokens-hour": "1e6"},
            [Said("requests", "second", 50, None), Said("tokens", "hour", 1e6, None)],
            id="other windows",
        ),
        pytest.param(
            {"x-ratelimit-remaining-tokens-minute": "5"}, [], id="what is left of an unknown limit says nothing"
        ),
        pytest.param(
            {"x-ratelimit-limit-tokens-minute": "60000", "x-ratelimit-remaining-tokens-minute": "-4"},
            [Said("tokens", "minute", 60000, None)],
            id="less than nothing is left: not said",
        ),
        *(
            pytest.param({"x-ratelimit-limit-tokens-minute": text}, [], id=f"no limit: {text}")
            for text in ("nan", "inf", "-1", "", "many", "1m2.5s", "0x10", "1e999")
        ),
        pytest.param(
            {"x-ratelimit-limit-tokens-minute": "1000000000"},
            [Said("tokens", "minute", 1e9, None)],
            id="unlimited is read as it stands: the pacer knows what it means",
        ),
        pytest.param(
            CIMultiDict({"X-RateLimit-Limit-Tokens-Minute": "7"}), [Said("tokens", "minute", 7, None)], id="any case"
        ),
    ],
)
def test_what_an_answer_says_about_its_windows(headers: dict[str, str], expected: list[Said]) -> None:
    assert ratelimits.windows_in(headers) == expected


@given(
    st.dictionaries(
        st.builds(
            "x-ratelimit-{}-{}{}".format,
            st.sampled_from(["limit", "remaining", "reset"]),
            st.sampled_from(["requests", "tokens", "total tokens", "x"]),
            st.sampled_from(["", "-second", "-minute", "-hour", "-day", "-week"]),
        ),
        st.text(alphabet="0123456789.,-+eEnaif_ hms", max_size=12) | st.text(max_size=6),
    )
)
def test_whatever_the_headers_hold_what_is_read_is_a_window_with_finite_numbers(headers: dict[str, str]) -> None:
    said = ratelimits.windows_in(headers)
    assert len({(word.kind, word.period) for word in said}) == len(said)
    for kind, period, limit, remaining in said:
        assert (kind, period) in WINDOWS
        for value in (limit, remaining):
            assert value is None or (math.isfinite(value) and value >= 0)
    for seconds in (ratelimits.reset_s(headers), ratelimits.stated_wait_s(headers, NOW)):
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


# -- refusals -------------------------------------------------------------------------------------

REQUESTS, TOKENS = "request_quota_exceeded", "token_quota_exceeded"


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        pytest.param(
            REQUESTS,
            "Requests per minute limit exceeded - too many requests sent.",
            ("requests", "minute"),
            id="requests per minute, as on the wire",
        ),
        pytest.param(
            REQUESTS,
            "Requests per second limit exceeded - too many requests sent.",
            ("requests", "second"),
            id="requests per second, as on the wire",
        ),
        pytest.param(
            TOKENS,
            "Tokens per minute limit exceeded - too many tokens processed.",
            ("tokens", "minute"),
            id="tokens per minute, as on the wire",
        ),
        pytest.param(TOKENS, "Tokens per day limit exceeded", ("tokens", "day"), id="tokens per day"),
        pytest.param(
            TOKENS, "Total tokens per minute limit exceeded", ("total tokens", "minute"), id="cached ones included"
        ),
        pytest.param(TOKENS, "Uncached tokens per minute limit exceeded", ("tokens", "minute"), id="uncached ones"),
        pytest.param(TOKENS, "slow down", ("tokens", None), id="only the code says it"),
        pytest.param(REQUESTS, "slow down", ("requests", None), id="only the code says it, of requests"),
        pytest.param(None, "slow down", ("requests", None), id="nothing says it: requests"),
        pytest.param(None, "", ("requests", None), id="no words at all"),
        pytest.param(REQUESTS, "tokens per hour exceeded", ("tokens", "hour"), id="the words come before the code"),
        pytest.param(TOKENS, "1 request per hour", ("requests", "hour"), id="in the singular, too"),
        pytest.param(None, "requests per fortnight", ("requests", None), id="a window that nobody knows"),
    ],
)
def test_which_limit_a_refusal_is_about(code: str | None, message: str, expected: tuple[Kind, Period | None]) -> None:
    assert ratelimits.refused_window(code, message) == expected


# -- waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({"retry-after": "7"}, 7.0, id="seconds"),
        pytest.param({"retry-after": "0.25"}, 0.25, id="a fraction"),
        pytest.param({"retry-after": " 7 "}, 7.0, id="white space"),
        pytest.param({"retry-after": "0"}, 0.0, id="zero"),
        pytest.param({"retry-after-ms": "250"}, 0.25, id="milliseconds"),
        pytest.param({"retry-after-ms": "250", "retry-after": "9"}, 0.25, id="milliseconds come first"),
        pytest.param({"retry-after-ms": "soon", "retry-after": "9"}, 9.0, id="unless they are none"),
        pytest.param({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0, id="a date"),
        pytest.param({"retry-after": "Fri, 20 Nov 2026 13:00:30 +0100"}, 30.0, id="a date of another zone"),
        pytest.param({"retry-after": "Fri, 20 Nov 2026 11:59:00 GMT"}, 0.0, id="a date gone by"),
        pytest.param({"retry-after": "Fri, 20 Nov 2026 12:00:30 -0000"}, None, id="a date of no zone"),
        pytest.param({"retry-after": "Fri, 99 Nov 2026 12:00:30 GMT"}, None, id="a date that is none"),
        pytest.param({"retry-after": "Fri, 20 Nov 99999 12:00:30 GMT"}, None, id="a year beyond all"),
        pytest.param({"retry-after": "Fri, 20 Nov 2026 12:00:30 +9999"}, None, id="a zone beyond all"),
        pytest.param({"retry-after": ""}, None, id="empty"),
        pytest.param({"retry-after": "soon"}, None, id="a word"),
        pytest.param({"retry-after": "-5"}, None, id="negative"),
        pytest.param({"retry-after": "nan"}, None, id="nan"),
        pytest.param({"retry-after": "inf"}, None, id="inf"),
        pytest.param({"retry-after": "1e999"}, None, id="too large for a float"),
        pytest.param({"retry-after": "1e300"}, 1e300, id="huge"),
        pytest.param({"retry-after": "9" * 5000}, None, id="5,000 digits"),
        pytest.param({"retry-after": "7, 9"}, None, id="two at once"),
    ],
)
def test_a_stated_wait_is_read_in_every_format_or_not_at_all(headers: dict[str, str], seconds: float | None) -> None:
    assert ratelimits.stated_wait_s(headers, NOW) == seconds


def test_a_date_as_servers_format_it_is_read_back() -> None:
    later = datetime(2026, 11, 20, 12, 1, 1, tzinfo=UTC)
    assert ratelimits.stated_wait_s({"retry-after": format_datetime(later, usegmt=True)}, NOW) == 61.0


MINUTE, DAY = "x-ratelimit-reset-tokens-minute", "x-ratelimit-reset-requests-day"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({MINUTE: "11.382867097854614"}, 11.382867097854614, id="float seconds, as on the wire"),
        pytest.param({MINUTE: "1m2.5s"}, 62.5, id="minutes and seconds"),
        pytest.param({MINUTE: "1h2m3s4ms"}, 3723.004, id="all four units"),
        pytest.param({MINUTE: "250ms"}, 0.25, id="milliseconds are no minutes"),
        pytest.param({MINUTE: "2m"}, 120.0, id="minutes"),
        pytest.param({MINUTE: "0s"}, 0.0, id="zero"),
        pytest.param({MINUTE: "s"}, None, id="a unit without a number"),
        pytest.param({MINUTE: "5s1m"}, None, id="the wrong order"),
        pytest.param({MINUTE: "1 m"}, None, id="a space within"),
        pytest.param({MINUTE: "-5"}, None, id="negative"),
        pytest.param({MINUTE: "nan"}, None, id="nan"),
        pytest.param({MINUTE: "2026-11-20T12:00:00Z"}, None, id="a date"),
        pytest.param({"x-ratelimit-reset-requests": "3", MINUTE: "9"}, 3.0, id="the shorter of two, any names"),
        pytest.param({DAY: "11726.28"}, None, id="the day says nothing while it is not used up"),
        pytest.param({DAY: "11726.28", "x-ratelimit-remaining-requests-day": "13693"}, None, id="nor with some left"),
        pytest.param({DAY: "11726.28", "x-ratelimit-remaining-requests-day": "0"}, 11726.28, id="the day is used up"),
        pytest.param(
            {DAY: "11726.28", "x-ratelimit-remaining-requests-day": "0", MINUTE: "26.28"},
            26.28,
            id="the shortest is the bound: it may have been the minute",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests-day": "14400",
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-remaining-requests-day": "13693",
                "x-ratelimit-remaining-tokens-minute": "60000",
                DAY: "11726.2840924263",
                MINUTE: "26.28409242630005",
            },
            26.28409242630005,
            id="the set captured on the wire",
        ),
    ],
)
def test_reset_headers_are_read_in_every_format(headers: dict[str, str], seconds: float | None) -> None:
    assert ratelimits.reset_s(headers) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, None, id="nothing"),
        pytest.param("", None, id="empty"),
        pytest.param("60000", 60000, id="a whole number"),
        pytest.param("6e4", 60000, id="with an exponent"),
        pytest.param("60,000", 60000, id="with separators"),
        pytest.param(" 7 ", 7, id="white space"),
        pytest.param("-0", 0, id="minus zero is zero"),
        pytest.param("-1", None, id="negative"),
        pytest.param("nan", None, id="nan"),
        pytest.param("inf", None, id="inf"),
        pytest.param("9" * 400, None, id="too large for a float"),
        pytest.param("seven", None, id="a word"),
    ],
)
def test_a_number_is_finite_and_not_negative_or_it_is_none(text: str | None, expected: float | None) -> None:
    assert ratelimits.number(text) == expected
