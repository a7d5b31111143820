"""A local Cerebras: the wire format, limits, speeds and faults of the inference service, without the service.

It imports nothing from the rest of cbatch: a simulator that shared code with the client would share its bugs.

    config.py       what can be chosen
    models.py       models and tiers: sizes, speeds, prices, limits
    app.py          routes
    completions.py  one chat request, in the order of its checks:
    validate.py       is it a valid request (fields.py, messages.py, strict.py, refusals.py)
    script.py         what a script wants answered (scripted.py)
    faults.py         what is to go wrong
    buckets.py        is there quota left (windows.py: how one limit is counted)
    cache.py          what of the prompt is cached
    answers.py        what is said (schemas.py)
    timing.py         when
    stream.py         as which bytes (wire.py: errors)
    sending.py        and so to the socket
    outage.py       the service is gone for a while
    stats.py        what was seen (recording.py)
    serving.py      a server of its own
"""

from .app import create_app
from .buckets import HEADER_SETS
from .config import OUTAGES, RESET_STYLES, SimConfig
from .faults import FAULTS
from .models import TIERS
from .refusals import REFUSALS
from .script import parse_script, read_script
from .serving import serve
from .windows import WINDOWS

__all__ = [
    "FAULTS",
    "HEADER_SETS",
    "OUTAGES",
    "REFUSALS",
    "RESET_STYLES",
    "TIERS",
    "WINDOWS",
    "SimConfig",
    "create_app",
    "parse_script",
    "read_script",
    "serve",
]
