"""What the server of known timing has really sent."""

from __future__ import annotations

import urllib.request
from array import array
from dataclasses import dataclass
from functools import cache

from tests.bench.timing_plans import NAMES, PLANS, Write, stream, whole
from tests.bench.timing_server import RECORD


@dataclass(frozen=True, slots=True)
class Sent:
    """One answer as it was really sent; times are CLOCK_MONOTONIC, the same in every process of this machine."""

    id: str
    tag: str  # the first eight digits of the request's x-request-id; zeros without one
    plan: str
    streamed: bool
    status: int
    read_ns: int  # the request, to its end
    stamps_ns: tuple[int, ...]  # of the writes that were made; short where the client went away

    @property
    def writes(self) -> list[Write]:
        """As planned."""
        return _planned(self.plan, self.streamed) if self.status == 200 else []

    @property
    def complete(self) -> bool:
        return self.status == 200 and len(self.stamps_ns) == len(self.writes)

    @property
    def tokens_ns(self) -> list[tuple[int, int]]:
        """When tokens were sent, and how many."""
        pairs = zip(self.stamps_ns, self.writes, strict=False)
        return [(stamp, write.tokens) for stamp, write in pairs if write.tokens]

    @property
    def ttft_s(self) -> float:
        """Request read until the first token was sent."""
        return (self.tokens_ns[0][0] - self.read_ns) / 1e9

    @property
    def tokens_per_s(self) -> float | None:
        """After the first write; None where all tokens went out at once."""
        tokens = self.tokens_ns
        elapsed_ns = tokens[-1][0] - tokens[0][0]
        later = sum(count for stamp, count in tokens if stamp > tokens[0][0])
        return later / elapsed_ns * 1e9 if elapsed_ns else None

    @property
    def late_s(self) -> float:
        """The first token, against the plan."""
        due = next(write.at_ns for write in self.writes if write.tokens)
        return (self.tokens_ns[0][0] - self.read_ns - due) / 1e9


@cache
def _planned(name: str, streamed: bool) -> list[Write]:
    return stream(PLANS[name]) if streamed else whole(PLANS[name])


def read_log(url: str) -> list[Sent]:
    """What a server at `url` (its address alone) has sent since it was asked last; refusals too."""
    log = array("q")
    with urllib.request.urlopen(f"{url}/log", timeout=60) as response:
        log.frombytes(response.read())
    found, at = [], 0
    while at < len(log):
        number, tag, plan, was_whole, status, read_ns, count = log[at : at + RECORD + 1]
        at += RECORD + 1
        stamps = tuple(log[at : at + count])
        found.append(Sent(f"chatcmpl-{number:012d}", f"{tag:08x}", NAMES[plan], not was_whole, status, read_ns, stamps))
        at += count
    return found
