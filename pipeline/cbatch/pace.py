"""now, cost -> when: requests and tokens per minute as arithmetic, without a clock of its own.

The server admits a request when its *reservation* (estimated prompt + max_completion_tokens)
fits what is left of the minute, and corrects the charge to the real usage when the answer is
done. So tokens have two rules here, and both must say yes:

- what is expected to be *used* flows at the limit: a late call makes up for at most 20 ms, and
  the bucket starts empty. The expectation is learned from the answers: with a reservation of
  16,384 and answers of 300 tokens, pacing by reservations would use 2 % of the quota.
- what is *reserved and not yet answered* stays below half of the limit, so that the server's
  bucket always has room for the next reservation.

A bucket as deep as the server's would be refused at every estimation error (8 % of requests
against 0.08 %). Source: generic cell rate algorithm, ITU-T I.371.
"""

from __future__ import annotations

MARGIN = 0.998  # of the limit; the rest is for clocks that differ
MAKE_UP_S = 0.020  # a timer that fires late may be made up for, up to this
RESERVED_SHARE = 0.5  # of a minute's tokens that may be reserved at once
LEARNING_RATE = 0.1  # weight of one answer in the expected share of a reservation
HEADROOM = 1.1  # answers vary: expect a little more than the mean


class Pacer:
    """The account's budget for one model. Times are loop seconds; None is no limit."""

    def __init__(self, rpm: int | None, tpm: int | None, *, now: float) -> None:
        self.rpm = rpm
        self.tpm = tpm
        self._request_s = 60 / (rpm * MARGIN) if rpm else 0.0
        self._token_s = 60 / (tpm * MARGIN) if tpm else 0.0
        self._requests_at = now  # theoretical arrival time of the next request
        self._tokens_at = now
        self._held_until = now
        self._reserved = 0
        self._used_share = 1.0  # of a reservation; learned
        self._learned = False

    def ready_at(self, now: float, reserve_tokens: int) -> float:
        """The time from which a request that reserves so many tokens may be sent; ≤ now means at once.

        `inf` while reservations in flight must be answered first. Raises ValueError if the
        reservation is larger than a minute's tokens, so that no wait would ever be enough.
        """
        if self.tpm is not None:
            if reserve_tokens > self.tpm:
                raise ValueError(f"reserves {reserve_tokens:,} tokens at once, and the limit is {self.tpm:,} a minute")
            if self._reserved and self._reserved + reserve_tokens > self.tpm * RESERVED_SHARE:
                return float("inf")
        return max(self._requests_at, self._tokens_at, self._held_until)

    def take(self, now: float, reserve_tokens: int) -> int:
        """Spend one request; returns the tokens charged, to be handed to `settle`."""
        if self.rpm is not None:
            self._requests_at = max(self._requests_at, now - MAKE_UP_S) + self._request_s
        if self.tpm is None:
            return 0
        expected = min(reserve_tokens, int(reserve_tokens * self._used_share * HEADROOM) + 1)
        self._tokens_at = max(self._tokens_at, now - MAKE_UP_S) + expected * self._token_s
        self._reserved += reserve_tokens
        return expected

    def settle(self, reserve_tokens: int, charged: int, used: int | None) -> None:
        """Correct the charge to the tokens really used; None is unknown and keeps the charge."""
        if self.tpm is None:
            return
        self._reserved -= reserve_tokens
        if used is None:
            return
        used = min(used, 2 * reserve_tokens)  # a server that lies must not stop the run for ever
        self._tokens_at += (used - charged) * self._token_s
        if used and reserve_tokens:
            share = min(1.0, used / reserve_tokens)
            weight = LEARNING_RATE if self._learned else 1.0
            self._used_share += weight * (share - self._used_share)
            self._learned = True

    def hold(self, until: float) -> None:
        """Send nothing before `until`: the server refused, and its word counts for the whole account."""
        self._held_until = max(self._held_until, until)

    def waiting_for(self, now: float, reserve_tokens: int) -> str:
        """What binds right now, in words for a progress line."""
        if self._held_until > now:
            return "a 429 to pass"
        ready = self.ready_at(now, reserve_tokens)
        if ready == float("inf"):
            return "tokens/min (reserved)"
        return "tokens/min" if self._tokens_at >= self._requests_at else "requests/min"
