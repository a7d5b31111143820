"""A local Cerebras: the wire format, limits, speeds and faults of the inference service, without the service.

It imports nothing from the rest of cbatch: a simulator that shared code with the client would share its bugs.

    config.py    what can be chosen             models.py    models, tiers, limits, prices
    app.py       routes                         completions.py  one chat request, in order of its checks
    validate.py  is it a valid request          fields.py       its fields        messages.py  its messages
    buckets.py   token buckets                  cache.py        prompt caching
    strict.py    which schemas are accepted     schemas.py      values for a schema
    answers.py   what is said                   models.py       who says it: sizes, speeds, prices, tiers
    stream.py    answers as bytes               wire.py         errors as bytes
    timing.py    when tokens exist              sending.py      bytes to the socket
    faults.py    what goes wrong                stats.py        what was seen
    serving.py   a server of its own
"""

from .app import create_app
from .config import SimConfig
from .faults import FAULTS
from .models import TIERS
from .serving import serve

__all__ = ["FAULTS", "TIERS", "SimConfig", "create_app", "serve"]
