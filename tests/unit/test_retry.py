"""What to do after an error is one pure decision: a table of it, and laws for whatever is not in the table."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch import retry
from cbatch.client import Reply, read_error
from cbatch.errors import APIConnectionError, APIError, APIResponseError, APIStatusError, APITimeoutError
from cbatch.retry import FIRST_BACKOFF_S, JITTER, MAX_BACKOFF_S, REFUSALS, GiveUp, RetryAfter, StopRun
from cbatch.schema import ErrorKind

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


class Fixed(random.Random):
    """Chance that is always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def status(code: int, name: str | None = None, **headers: str) -> APIStatusError:
    """The error the client makes of an answer; header names with _ for -."""
    body = f'{{"message":"m","code":"{name}"}}'.encode() if name else b""
    return read_error(Reply(code, {key.replace("_", "-"): value for key, value in headers.items()}, body))


def decide(error: APIError, *, counted: int = 1, rng: random.Random | None = None, **given: Any) -> retry.Decision:
    arguments: dict[str, Any] = {"attempts": 6, "max_wait_s": 120.0, "others_succeed": False, "refusals": 0, **given}
    return retry.decide(error, counted=counted, now=NOW, rng=rng or Fixed(0.0), **arguments)


QUOTA, TOKENS, QUEUE = "request_quota_exceeded", "token_quota_exceeded", "queue_exceeded"
TRUNCATED = APIResponseError("cut", code="truncated", truncated=True)
RESET = "x_ratelimit_reset_tokens_minute"


@pytest.mark.parametrize(
    ("error", "given_as", "expected"),
    [
        # the prompt is tried again, by itself
        pytest.param(APIConnectionError("c"), {}, RetryAfter(0.5, "connection"), id="no connection is tried again"),
        pytest.param(APITimeoutError("t"), {}, RetryAfter(0.5, "timeout"), id="a timeout is tried again"),
        pytest.param(TRUNCATED, {}, RetryAfter(0.5, "truncated"), id="a cut answer is tried again"),
        pytest.param(
            APIResponseError("html", code="not_json"), {}, RetryAfter(0.5, "server"), id="HTML with 200 is tried again"
        ),
        pytest.param(status(408), {}, RetryAfter(0.5, "timeout (HTTP 408)"), id="408 is tried again"),
        pytest.param(status(409), {}, RetryAfter(0.5, "server (HTTP 409)"), id="409 is tried again"),
        pytest.param(status(500), {}, RetryAfter(0.5, "server (HTTP 500)"), id="500 is tried again"),
        pytest.param(status(502), {}, RetryAfter(0.5, "server (HTTP 502)"), id="502 is tried again"),
        pytest.param(status(503), {}, RetryAfter(0.5, "server (HTTP 503)"), id="503 is tried again"),
        pytest.param(status(529), {}, RetryAfter(0.5, "server (HTTP 529)"), id="any 5xx is tried again"),
        pytest.param(
            status(429, QUEUE), {}, RetryAfter(0.5, "overloaded (HTTP 429)"), id="a full queue delays only its prompt"
        ),
        # the account waits
        pytest.param(
            status(429, QUOTA),
            {},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="a quota of requests holds the account",
        ),
        pytest.param(
            status(429, TOKENS),
            {},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="a quota of tokens holds the account",
        ),
        pytest.param(
            status(429),
            {},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="a 429 without a code holds the account",
        ),
        # what counts
        pytest.param(
            status(429, QUOTA),
            {"others_succeed": True},
            RetryAfter(0.0, "rate_limited (HTTP 429)", counts=False),
            id="a 429 while others succeed does not count",
        ),
        pytest.param(
            status(429, QUOTA),
            {"others_succeed": True, "counted": 6},
            RetryAfter(0.0, "rate_limited (HTTP 429)", counts=False),
            id="not even when all attempts are used",
        ),
        pytest.param(
            status(429, QUOTA), {"counted": 6}, GiveUp("failed 6 times"), id="a 429 while nobody succeeds counts"
        ),
        pytest.param(
            status(429, QUEUE),
            {"others_succeed": True, "counted": 6, "refusals": 3},
            RetryAfter(2.0, "overloaded (HTTP 429)", counts=False),
            id="a full queue while others succeed does not count, and backs off by its refusals",
        ),
        pytest.param(
            status(429, QUEUE), {"counted": 6}, GiveUp("failed 6 times"), id="a full queue while nobody succeeds counts"
        ),
        pytest.param(
            status(429, QUOTA),
            {"others_succeed": True, "refusals": REFUSALS - 1},
            RetryAfter(0.0, "rate_limited (HTTP 429)", counts=False),
            id="many refusals of one prompt are borne",
        ),
        pytest.param(
            status(429, QUOTA),
            {"others_succeed": True, "refusals": REFUSALS},
            GiveUp("refused 50 times while other prompts got through"),
            id="not without end: it alone does not fit",
        ),
        pytest.param(
            status(429, QUEUE),
            {"others_succeed": True, "refusals": REFUSALS},
            GiveUp("refused 50 times while other prompts got through"),
            id="by a full queue neither",
        ),
        pytest.param(
            status(429, QUOTA),
            {"counted": 60, "attempts": 100, "refusals": 60},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="while nobody gets through, the attempts that the user gave are the end",
        ),
        pytest.param(
            status(500), {"others_succeed": True, "counted": 6}, GiveUp("failed 6 times"), id="a 500 counts always"
        ),
        pytest.param(APIConnectionError("c"), {"attempts": 1}, GiveUp("failed once"), id="one attempt is one"),
        # what no retry can help
        *(
            pytest.param(status(code), {}, GiveUp("a retry cannot help"), id=f"{code} is not tried again")
            for code in (307, 400, 404, 405, 410, 413, 422, 451)
        ),
        # what dooms every prompt
        pytest.param(
            status(401, "wrong_api_key"),
            {},
            StopRun(
                "HTTP 401: m",
                "the key was refused; check CEREBRAS_API_KEY or --api-key-file, then run the same line again",
            ),
            id="a wrong key stops the run",
        ),
        pytest.param(
            status(402, "payment_required", x_should_retry="false"),
            {},
            StopRun("HTTP 402: m", "add a payment method or credit in the billing tab, then run the same line again"),
            id="no credit stops the run",
        ),
        pytest.param(
            status(403),
            {},
            StopRun(
                "HTTP 403: no body",
                "no key was sent, or it may not use this; check CEREBRAS_API_KEY, then run the same line again",
            ),
            id="a missing key stops the run",
        ),
        pytest.param(
            status(401, x_should_retry="true", retry_after="1"),
            {},
            StopRun(
                "HTTP 401: no body",
                "the key was refused; check CEREBRAS_API_KEY or --api-key-file, then run the same line again",
            ),
            id="whatever the headers say",
        ),
        # the server's word
        pytest.param(
            status(500, x_should_retry="false"),
            {},
            GiveUp("the server says that a retry cannot help"),
            id="x-should-retry: false is believed",
        ),
        pytest.param(
            status(429, QUOTA, x_should_retry="False"),
            {"others_succeed": True},
            GiveUp("the server says that a retry cannot help"),
            id="also for a 429, in any case",
        ),
        pytest.param(
            status(400, x_should_retry="true"),
            {},
            RetryAfter(0.5, "bad_request (HTTP 400)"),
            id="x-should-retry: true is believed",
        ),
        pytest.param(
            status(400, x_should_retry=" true "),
            {},
            RetryAfter(0.5, "bad_request (HTTP 400)"),
            id="with white space around it",
        ),
        pytest.param(
            status(400, x_should_retry="true"), {"counted": 6}, GiveUp("failed 6 times"), id="but not without end"
        ),
        pytest.param(
            status(400, x_should_retry="maybe"), {}, GiveUp("a retry cannot help"), id="another word is no word"
        ),
        # how long
        pytest.param(
            status(503, retry_after="7"), {}, RetryAfter(7.0, "server (HTTP 503)"), id="Retry-After is waited for"
        ),
        pytest.param(
            status(429, QUOTA, retry_after="7", **{RESET: "3"}),
            {},
            RetryAfter(7.0, "rate_limited (HTTP 429)"),
            id="Retry-After comes before the reset headers",
        ),
        pytest.param(
            status(429, QUOTA, **{RESET: "26.28"}),
            {},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="a reset is no request to wait: what it means is the pacer's affair",
        ),
        pytest.param(
            status(429, QUEUE, **{RESET: "0.2"}),
            {},
            RetryAfter(0.5, "overloaded (HTTP 429)"),
            id="a full queue does not empty when the quota is reset",
        ),
        pytest.param(
            status(503, retry_after="0"),
            {},
            RetryAfter(0.5, "server (HTTP 503)"),
            id="a wait of 0 is a rounded one: all attempts in one second help nobody",
        ),
        pytest.param(
            status(429, QUOTA, retry_after="0"),
            {},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="of the quota, too, and the pacer finds a better one",
        ),
        pytest.param(
            status(429, QUEUE, retry_after="0"),
            {"others_succeed": True, "refusals": 1},
            RetryAfter(0.5, "overloaded (HTTP 429)", counts=False),
            id="nor does a full queue empty at once",
        ),
        pytest.param(
            status(503, retry_after="120"),
            {},
            RetryAfter(120.0, "server (HTTP 503)"),
            id="the longest wait that is accepted",
        ),
        pytest.param(
            status(503, retry_after="121"),
            {},
            GiveUp("the server asks to wait 121 s, more than retry.max_wait_s (120)"),
            id="a longer one fails the prompt, with the numbers",
        ),
        *(
            pytest.param(
                status(429, QUOTA, retry_after="39000"),
                {"others_succeed": others, "counted": counted, "refusals": refusals},
                StopRun(
                    "HTTP 429: m; the server asks to wait 39,000 s, more than retry.max_wait_s (120)",
                    "run the same line again later, or raise retry.max_wait_s",
                ),
                id=words,
            )
            for others, counted, refusals, words in (
                (True, 1, 1, "an account that must wait longer stops the run: every prompt would fail"),
                (False, 1, 1, "also where it is the first thing that the server says"),
                (False, 6, 6, "also at the last attempt: the others would fail one by one"),
                (True, 1, REFUSALS, "also when the prompt was refused often"),
            )
        ),
        pytest.param(
            status(429, QUEUE, retry_after="39000"),
            {"others_succeed": True, "refusals": 1},
            GiveUp("the server asks to wait 39,000 s, more than retry.max_wait_s (120)"),
            id="a full queue stops nobody else",
        ),
        pytest.param(
            status(429, QUOTA, retry_after="120"),
            {"others_succeed": True},
            RetryAfter(120.0, "rate_limited (HTTP 429)", counts=False),
            id="the longest wait of an account that is accepted",
        ),
        pytest.param(
            status(500),
            {"max_wait_s": 0.1},
            RetryAfter(0.1, "server (HTTP 500)"),
            id="our own wait is cut there too",
        ),
        pytest.param(
            status(429, QUOTA, **{RESET: "59"}),
            {"max_wait_s": 10.0, "counted": 8, "attempts": 10},
            RetryAfter(0.0, "rate_limited (HTTP 429)"),
            id="a far reset is no request to wait so long, and stops nobody",
        ),
    ],
)
def test_decision(error: APIError, given_as: dict[str, Any], expected: retry.Decision) -> None:
    assert decide(error, **given_as) == expected


MINUTE, DAY = "x-ratelimit-reset-tokens-minute", "x-ratelimit-reset-requests-day"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_from_half_a_second_to_thirty_and_only_shrinks_by_its_jitter(
    counted: int, chance: float
) -> None:
    full = min(FIRST_BACKOFF_S * 2 ** (counted - 1), MAX_BACKOFF_S) if counted < 100 else MAX_BACKOFF_S
    decision = decide(status(500), counted=counted, attempts=20_000, rng=Fixed(chance))
    assert isinstance(decision, RetryAfter)
    assert full * (1 - JITTER) <= decision.seconds <= full


def test_a_crowd_does_not_come_back_as_one() -> None:
    rng = random.Random(7)
    waits = {decide(status(500), rng=rng) for _ in range(100)}
    assert len(waits) == 100


ERRORS = st.one_of(
    st.just(APIConnectionError("c")),
    st.just(APITimeoutError("t")),
    st.just(TRUNCATED),
    st.builds(
        lambda code, name, headers: read_error(Reply(code, headers, f'{{"code":"{name}"}}'.encode())),
        st.integers(300, 599),
        st.sampled_from([QUOTA, TOKENS, QUEUE, "x"]),
        st.dictionaries(
            st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry", MINUTE, DAY]),
            st.text(alphabet="0123456789.-+ehms:, GMTnaif", max_size=30) | st.text(max_size=8),
        ),
    ),
)


@given(
    ERRORS,
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(0, 100),
    st.floats(0.01, 1e4),
    st.booleans(),
    st.randoms(),
)
def test_whatever_the_server_says_a_wait_is_finite_and_not_above_the_maximum(
    error: APIError,
    counted: int,
    attempts: int,
    refusals: int,
    max_wait_s: float,
    others: bool,
    rng: random.Random,
) -> None:
    """Who waits alone waits a while; who goes on for ever does so only while others get through, and not for long."""
    decision = retry.decide(
        error,
        counted=counted,
        refusals=refusals,
        attempts=attempts,
        max_wait_s=max_wait_s,
        others_succeed=others,
        now=NOW,
        rng=rng,
    )
    if isinstance(decision, RetryAfter):
        assert 0 <= decision.seconds <= max_wait_s
        assert decision.seconds > 0 or retry.kind_of(error) == "rate_limited"
        assert decision.counts or (others and refusals < REFUSALS)
        assert counted < attempts or not decision.counts
    else:
        assert decision.because


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(APIError("?"), "server", id="an error of no kind"),
        pytest.param(APITimeoutError("t"), "timeout", id="a timeout is not a connection"),
        pytest.param(APIConnectionError("c"), "connection", id="no connection"),
        pytest.param(TRUNCATED, "truncated", id="a cut answer"),
        pytest.param(APIResponseError("h", code="not_json"), "server", id="HTML with 200"),
        pytest.param(status(307), "server", id="a redirect"),
        pytest.param(status(400), "bad_request", id="400"),
        pytest.param(status(400, "context_length_exceeded"), "context_length", id="400, too long"),
        pytest.param(status(401), "auth", id="401"),
        pytest.param(status(402), "payment", id="402"),
        pytest.param(status(403), "auth", id="403"),
        pytest.param(status(404), "not_found", id="404"),
        pytest.param(status(408), "timeout", id="408"),
        pytest.param(status(409), "server", id="409"),
        pytest.param(status(413), "bad_request", id="413"),
        pytest.param(status(422), "bad_request", id="422"),
        pytest.param(status(429, QUOTA), "rate_limited", id="429, requests"),
        pytest.param(status(429, TOKENS), "rate_limited", id="429, tokens: not a long context"),
        pytest.param(status(429), "rate_limited", id="429 without a code"),
        pytest.param(status(429, QUEUE), "overloaded", id="429, the server's queue"),
        pytest.param(status(500), "server", id="500"),
        pytest.param(status(503), "server", id="503"),
    ],
)
def test_kind(error: APIError, kind: ErrorKind) -> None:
    assert retry.kind_of(error) == kind
