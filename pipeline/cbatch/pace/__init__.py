"""now, cost -> when: every limit of one account and model as arithmetic, without a clock of its own.

    windows.py   one limit: a smooth flow, and a mirror of the server's bucket
    lessons.py   what a refusal teaches: the limit that nobody told
    pacer.py     all windows of an account together

All numbers live in one sequence of floats, so that the processes of one key can share them
(`account.py`); a pacer that shares nothing has an array of its own.
"""

from __future__ import annotations

from cbatch.pace.pacer import Pacer, forget, rebase
from cbatch.pace.windows import FLOATS, MARGIN, SECONDS, WINDOWS, Cost, Kind, NeverFits, Period, Said, Used

__all__ = [
    "FLOATS",
    "MARGIN",
    "SECONDS",
    "WINDOWS",
    "Cost",
    "Kind",
    "NeverFits",
    "Pacer",
    "Period",
    "Said",
    "Used",
    "forget",
    "rebase",
]
