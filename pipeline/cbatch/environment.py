"""Where the world gets in: key, address, proxy, folders. The only file that reads environment variables.

The key is looked for in this order: --api-key-file, CEREBRAS_API_KEY, .env.local and .env beside
the job, the same in the current folder, ~/.config/cerebras/api_key.

What is heavy is imported where it is used: every command asks for `catalog_file`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from cbatch.errors import JobError, KeyProblem

KEY_NAME = "CEREBRAS_API_KEY"
URL_NAME = "CEREBRAS_BASE_URL"
MAX_KEY_CHARS = 8_000  # of a header, servers take 8 KB


def find_key(key_file: Path | None, job_folder: Path | None) -> str | None:
    """The API key, or None where no place has one. Raises KeyProblem for one that cannot be a key."""
    if key_file is not None:
        return _from_file(key_file, needed=True)
    if (value := os.environ.get(KEY_NAME)) is not None and value != "":
        return checked(value, f"the environment variable {KEY_NAME}")
    folders = [job_folder] if job_folder else []
    for folder in (*folders, Path.cwd()):
        for name in (".env.local", ".env"):
            path = folder / name
            if path.is_file() and (found := _from_env_file(path)):
                return checked(found, str(path))
    return _from_file(_config_file(), needed=False)


def places() -> str:
    """Where a key is looked for, for messages."""
    return f"--api-key-file, {KEY_NAME}, .env.local or .env beside the job or here, {_config_file()}"


def missing_key() -> KeyProblem:
    """The error for a run that needs a key and found none."""
    return KeyProblem(
        f"no API key found; looked at {places()}",
        hint=f"export {KEY_NAME}=… (from cloud.cerebras.ai), or try it without a key: add --sim",
    )


def base_url(option: str | None, endpoint: str) -> str:
    """The address to send to: --base-url, else the job's URL, else CEREBRAS_BASE_URL, else the real one."""
    from cbatch.client import DEFAULT_BASE_URL, normalise_base_url

    for value, said in (
        (option, "--base-url"),
        (endpoint if endpoint not in ("cerebras", "sim") else None, "endpoint"),
        (os.environ.get(URL_NAME), URL_NAME),
    ):
        if value:
            try:
                return normalise_base_url(value)
            except ValueError as exc:
                raise JobError(f"{said}: {exc}", hint="for example https://api.cerebras.ai") from None
    return normalise_base_url(DEFAULT_BASE_URL)


def is_local(url: str) -> bool:
    """Whether an address is this machine, by what it says: names are not looked up."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # 127.1 is short for 127.0.0.1, and 127.example.com is a name
        return host == "localhost" or host.endswith(".localhost") or re.fullmatch(r"127(\.\d+)+", host) is not None
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # what connects to 0.0.0.0 reaches this machine


def proxy_for(url: str) -> str | None:
    """The proxy of the environment for an address, looked up once and not per request. Raises JobError."""
    import urllib.request

    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_local(url) or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"  # as curl takes it
    try:
        found = urlsplit(proxy)
        usable = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        usable = False
    if not usable:  # unsaid: it may hold a password
        raise JobError(
            f"{parts.scheme.upper()}_PROXY: not the address of an HTTP proxy", hint="for example http://127.0.0.1:3128"
        )
    return proxy


def catalog_file() -> Path:
    """Where `cbatch models --refresh` keeps prices; it need not exist."""
    from platformdirs import user_data_path

    return user_data_path("cbatch") / "catalog.json"


def _config_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cerebras" / "api_key"


def _from_env_file(path: Path) -> str | None:
    from dotenv import dotenv_values

    try:
        return dotenv_values(path, encoding="utf-8-sig").get(KEY_NAME)  # -sig: Windows editors put a mark first
    except (OSError, UnicodeDecodeError):
        raise KeyProblem(f"{path}: cannot be read as text", hint="it is looked at for the API key") from None


def _from_file(path: Path, *, needed: bool) -> str | None:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(2 * MAX_KEY_CHARS)
    except FileNotFoundError:
        if needed:
            raise KeyProblem(f"{path}: no such file", hint="--api-key-file names a file that holds the key") from None
        return None
    except (OSError, UnicodeDecodeError):
        raise KeyProblem(f"{path}: the key file cannot be read as text") from None
    # Editors and `echo` end a file with a newline; that is not part of the key.
    return checked(text.strip(), str(path))


def checked(key: str, place: str) -> str:
    """The key, if it can be one. Raises KeyProblem that names the place and not the key."""
    if not key:
        raise KeyProblem(f"{place} is empty", hint="put the API key there")
    if any(c in "\r\n" for c in key):
        raise KeyProblem(f"the key in {place} has a newline in it", hint="it must be one line: paste it again")
    if not all(33 <= ord(c) < 127 for c in key):
        raise KeyProblem(f"the key in {place} has a space or another character that no key has", hint="paste it again")
    if len(key) > MAX_KEY_CHARS:
        raise KeyProblem(f"the key in {place} is longer than any key", hint="paste it again")
    return key


def state_folder() -> Path:
    """Where the processes of this user share what they know about an account's limits."""
    from platformdirs import user_state_path

    return user_state_path("cbatch") / "budgets"
