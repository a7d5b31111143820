"""What can be made to go wrong: one switch per fault, drawn without a random generator.

A draw depends on (seed, fault, request, attempt) alone. So the same run meets the same faults whatever the
order in which its requests arrive, and sending a request again draws again. `bad_request` leaves the attempt
out: a bad prompt stays bad.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType

__all__ = ["ALIASES", "FAULTS", "FaultPlan", "resolve"]

# The order is the order of drawing: the first fault that fires is the only one a request meets.
FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "bad_request": "400 for a fixed share of the prompts, on every attempt",
        "payment_required": "402 with x-should-retry: false",
        "rate_limited_requests": "429 request_quota_exceeded although the bucket has room",
        "rate_limited_tokens": "429 token_quota_exceeded although the bucket has room",
        "queue_exceeded": "429 queue_exceeded: the server is busy, the quota is not used up",
        "timeout_408": "408 request timeout",
        "server_error": "500 with a JSON body",
        "unavailable": "503 with a JSON body",
        "bad_gateway_html": "502 with an HTML page, as an edge proxy sends it",
        "html_200": "200 with an HTML page instead of an answer",
        "empty_body_200": "200 with an empty body",
        "drop_before": "connection closed before any byte of the answer",
        "drop_mid": "connection closed in the middle of the answer",
        "stall": "half of the answer, then stall_s of silence, then the rest",
        "error_in_stream": "an error object inside the stream, which then ends; 500 when not streaming",
        "event_error_in_stream": "an `event: error` inside a stream, which then ends; 500 when not streaming",
        "malformed_json": "broken JSON: one chunk of a stream, or the whole body",
        "missing_done": "a stream that ends without [DONE]",
        "missing_usage": "an answer without usage and time_info",
        "empty_answer": "an answer whose content is the empty string",
        "wrong_model": "an answer that names another model",
        "invalid_output": "with response_format: content that is not valid JSON",
        "slow_first_byte": "slow_s of silence before the first byte",
        "close_connection": "a good answer, then the connection is closed",
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "400": "bad_request",
        "402": "payment_required",
        "408": "timeout_408",
        "429": "rate_limited_requests",
        "500": "server_error",
        "502": "bad_gateway_html",
        "503": "unavailable",
        "busy": "queue_exceeded",
        "close": "close_connection",
        "drop": "drop_before",
        "empty": "empty_answer",
        "html": "bad_gateway_html",
        "malformed": "malformed_json",
        "queue": "queue_exceeded",
        "rpm": "rate_limited_requests",
        "slow": "slow_first_byte",
        "timeout": "timeout_408",
        "tpm": "rate_limited_tokens",
    }
)

_REMEMBERED = 65_536  # requests whose attempts are counted; the oldest is forgotten first
_TWO_64 = float(1 << 64)


def resolve(faults: Mapping[str, float]) -> dict[str, float]:
    """Full names in drawing order; raises ValueError for an unknown name or a probability outside 0..1."""
    chosen: dict[str, float] = {}
    for given, probability in faults.items():
        written = given.strip().lower().replace("-", "_")
        name = ALIASES.get(written, written)
        if name not in FAULTS:
            near = difflib.get_close_matches(written, [*FAULTS, *ALIASES], n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise ValueError(
                f"unknown fault {given!r}\n{hint}accepted: {', '.join(FAULTS)}; "
                f"short: {', '.join(f'{short}={full}' for short, full in ALIASES.items())}"
            )
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"fault {given} has probability {probability}\ngive a number from 0 to 1")
        chosen[name] = float(probability)
    return {name: chosen[name] for name in FAULTS if chosen.get(name)}


class FaultPlan:
    """Decides which fault, if any, one request meets."""

    def __init__(self, faults: Mapping[str, float], seed: int) -> None:
        self.active = resolve(faults)
        self._keys = {name: f"{seed}/{name}".encode() for name in self.active}
        self._attempts: dict[bytes, int] = {}

    def draw(self, request: bytes, prompt: bytes) -> str | None:
        """The fault for this arrival of `request`; both are digests, `prompt` of the prompt alone."""
        attempt = self._attempts.pop(request, 0)
        self._attempts[request] = attempt + 1
        if len(self._attempts) > _REMEMBERED:
            del self._attempts[next(iter(self._attempts))]
        for name, probability in self.active.items():
            subject = prompt if name == "bad_request" else request + attempt.to_bytes(8, "big")
            if _chance(self._keys[name], subject) < probability:
                return name
        return None

    def forget(self) -> None:
        """Start counting attempts anew."""
        self._attempts.clear()


def _chance(key: bytes, subject: bytes) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = blake2b(subject, digest_size=8, key=key[:64]).digest()
    return int.from_bytes(digest, "big") / _TWO_64
