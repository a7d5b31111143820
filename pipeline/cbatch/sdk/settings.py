"""What a client finds outside of its arguments: key, address, headers; and how headers add up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cbatch import environment
from cbatch.errors import CbatchError
from cbatch.sdk import errors
from cbatch.sdk.given import is_given
from cbatch.sdk.web import URL

if TYPE_CHECKING:
    from cbatch.sdk.core import Core

DEFAULT_BASE_URL = "https://api.cerebras.ai"
HEADERS_NAME = "CEREBRAS_CUSTOM_HEADERS"
NEVER_S = 1e9


def key_of(given_key: str | None) -> str:
    """The key. Raises CerebrasError where there is none, or one that cannot be."""
    try:
        if given_key is not None:
            return environment.checked(given_key, "api_key")
        found = environment.find_key(None, None)
    except CbatchError as exc:
        raise errors.CerebrasError(f"{exc}\nhint: {exc.hint}" if exc.hint else str(exc)) from None
    if found is None:
        raise errors.CerebrasError(
            "The api_key client option must be set either by passing api_key to the client or by setting the "
            f"{environment.KEY_NAME} environment variable; looked at {environment.places()}"
        )
    return found


def address_of(said: str | None) -> URL:
    """The address as the SDK shows it: a path ends in a slash."""
    url = str(said) if said is not None else os.environ.get(environment.URL_NAME) or DEFAULT_BASE_URL
    return URL(url if url.endswith("/") or not URL(url).path else url + "/")


def core_of(base_url: str, key: str, timeout: Any) -> Core:
    """What sends to an address. Raises CerebrasError where it is none."""
    from cbatch.client import normalise_base_url
    from cbatch.sdk.core import Core
    from cbatch.transport import Endpoint

    try:
        url = normalise_base_url(base_url)
        proxy = environment.proxy_for(url)
    except (ValueError, CbatchError) as exc:
        raise errors.CerebrasError(f"base_url: {exc}") from None
    connect_s = timeout.connect if hasattr(timeout, "connect") else timeout
    return Core(Endpoint(base_url=url, key=key, proxy=proxy, connect_s=NEVER_S if connect_s is None else connect_s))


def environment_headers() -> Iterator[tuple[str, str]]:
    """`Name: value` lines of CEREBRAS_CUSTOM_HEADERS."""
    for line in os.environ.get(HEADERS_NAME, "").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def merged(*all_headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request: of one name, in whatever case, the last word wins, and Omit takes it away."""
    found: dict[str, tuple[str, Any]] = {}
    for headers in all_headers:
        for name, value in headers.items():
            found[name.lower()] = name, value
    return {name: str(value) for name, value in found.values() if is_given(value)}
