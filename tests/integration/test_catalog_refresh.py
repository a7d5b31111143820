"""`cbatch models --refresh`: today's public prices in one file, and nobody's invented ones."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PIPELINE, Forking, JobFolder, Result, Sim
from tests.integration.test_crash import small_disk

NAME = "gpt-oss-120b"
# The tests' servers are on this machine: this lets one pass for the real service.
REMOTE = "from cbatch import environment; environment.is_local = lambda url: False"
Cbatch = Callable[..., Result]

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="the folder of the catalog is the one of Linux")


class Server:
    """A public list that says what it is told to; `seen` has the headers of every request."""

    def __init__(self) -> None:
        self.body = b""
        self.seen: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append({**self.headers, "path": self.path})
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def says(self, *entries: object) -> None:
        self.body = json.dumps({"object": "list", "data": entries}).encode()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def cbatch(forking: Forking, tmp_path: Path) -> Cbatch:
    def run(*args: str | Path, key: str | None = None, first: str = REMOTE) -> Result:
        return forking.start([str(arg) for arg in args], key=key, cwd=tmp_path, first=first).wait()

    return run


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """The catalog of the user whose command lines run in tmp_path."""
    return tmp_path / "home" / ".local" / "share" / "cbatch" / "catalog.json"


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def listed(name: str = NAME, prompt: object = "0.0000004", completion: object = "0.0000008", **more: Any) -> object:
    return {
        "id": name,
        "object": "model",
        "pricing": {"prompt": prompt, "completion": completion},
        "limits": {"max_context_length": 131_072, "max_completion_tokens": 40_960},
        **more,
    }


def test_a_refresh_needs_no_key_and_sends_none(server: Server, cbatch: Cbatch, users: Path) -> None:
    server.says(listed())
    done = cbatch("models", "--refresh", "--base-url", server.url, key="csk-0123456789-secret")
    assert done.code == 0, done.err
    assert [request["path"] for request in server.seen] == ["/public/v1/models"]
    assert "Authorization" not in server.seen[0]
    assert cbatch("models", "--refresh", "--base-url", server.url).code == 0
    assert "csk-" not in users.read_text()


def test_a_refresh_says_what_changed_and_what_it_wrote(server: Server, cbatch: Cbatch, users: Path) -> None:
    server.says(
        listed(), listed("newcomer"), listed("odd", prompt="free"), listed("zai-glm-4.7", "0.00000225", "0.00000275")
    )
    done = cbatch("models", "--refresh", "--base-url", server.url)
    assert (done.code, done.err) == (0, "")
    for line in (
        f"prices  {NAME}: $0.35 in, $0.75 out -> $0.4 in, $0.8 out",
        "new     newcomer: $0.4 in, $0.8 out, context 131,072",
        "gone    gemma-4-31b: not in the list; its entry of 2026-10 stays",
        'refused odd: pricing.prompt is "free"; accepted: USD per token',
        f"written: {users}, prices of {today()}",
    ):
        assert line in done.out
    assert "zai-glm-4.7" not in done.out
    written = json.loads(users.read_text())
    assert (written["prices_as_of"], written["read_from"]) == (today(), f"{server.url}/public/v1/models")
    assert stat.S_IMODE(users.stat().st_mode) == 0o644
    assert list(users.parent.iterdir()) == [users]
    again = cbatch("models", "--refresh", "--base-url", server.url, "--json").summary
    assert (again["prices"], again["sizes"], again["new"], again["models"]) == ([], [], [], 4)
    assert len(again["gone"]) == 2
    server.says(listed())
    dropped = cbatch("models", "--refresh", "--base-url", server.url).out
    assert "newcomer: not in the list; its entry is dropped" in dropped


def test_plans_and_runs_reckon_with_refreshed_prices(
    server: Server, cbatch: Cbatch, users: Path, job: JobFolder
) -> None:
    path = job.path / "job.yaml"
    path.write_text(json.dumps(job.settings))
    before = cbatch("plan", path, "--json").summary["models"][0]["cost_usd"]
    server.says(listed(prompt="0.0000007", completion="0.0000015"))  # twice the packaged prices
    assert cbatch("models", "--refresh", "--base-url", server.url).code == 0
    after = cbatch("plan", path, "--json").summary["models"][0]["cost_usd"]
    assert after == pytest.approx([2 * cost for cost in before])
    assert f"(prices of {today()})" in cbatch("plan", path).out
    home = job.path / "home" / ".local" / "share" / "cbatch"
    home.mkdir(parents=True)
    (home / "catalog.json").write_bytes(users.read_bytes())
    assert job.execute().code == 0
    for row in job.results():
        assert row["cost_usd"] == pytest.approx((row["prompt_tokens"] * 0.7 + row["completion_tokens"] * 1.5) / 1e6)


def test_models_shows_the_date_of_prices_and_from_where(sim: Sim, server: Server, cbatch: Cbatch, users: Path) -> None:
    seen = cbatch("models", "--base-url", sim.url, key="key")
    assert f"prices: {today()}, from {sim.url}/public/v1/models" in seen.out
    assert "runs reckon with prices of 2026-10, from the catalog in cbatch" in seen.out
    server.says(listed())
    cbatch("models", "--refresh", "--base-url", server.url)
    found = cbatch("models", "--base-url", sim.url, "--json", key="key").summary
    assert found["as_of"] == {"prices": today(), "limits": "2026-09"}
    assert found["prices_from"] == f"{server.url}/public/v1/models"


@pytest.mark.parametrize("address", ["--sim", "loopback"])
def test_a_simulator_never_writes_the_users_catalog(
    sim: Sim, cbatch: Cbatch, users: Path, tmp_path: Path, address: str
) -> None:
    where = ["--sim"] if address == "--sim" else ["--base-url", sim.url]
    users.parent.mkdir(parents=True)
    users.write_text("mine")
    (tmp_path / "link.json").symlink_to(users)
    for target in ([], ["--catalog", users], ["--catalog", tmp_path / "link.json"]):
        refused = cbatch("models", "--refresh", *where, *target, first="")
        assert refused.code == 2
        assert "its prices may be invented" in refused.err
        assert "--catalog FILE" in refused.err
        assert users.read_text() == "mine"
    named = tmp_path / "simulated.json"
    done = cbatch("models", "--refresh", *where, "--catalog", named, first="")
    assert done.code == 0
    assert set(json.loads(named.read_text())["models"]) >= {NAME}
    assert users.read_text() == "mine"


def test_a_simulator_far_away_is_known_by_its_words(sim: Sim, cbatch: Cbatch, users: Path) -> None:
    """Behind a tunnel, in a container: its address says nothing."""
    refused = cbatch("models", "--refresh", "--base-url", sim.url)
    assert refused.code == 2
    assert "is a simulator: its prices may be invented" in refused.err
    assert not users.exists()


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([], id="nothing"),
        pytest.param([listed(prompt="free")], id="words"),
        pytest.param([listed(prompt="-0.0000004")], id="negative"),
        pytest.param([listed(prompt=0, completion=0)], id="nothing to pay"),
        pytest.param([listed(prompt="0.35", completion="0.75")], id="another unit"),
        pytest.param([{"id": NAME}], id="no pricing"),
        pytest.param([listed(f"m{number}") for number in range(20_000)], id="huge"),
    ],
)
def test_a_public_list_that_lies_changes_nothing(
    server: Server, cbatch: Cbatch, users: Path, entries: list[object]
) -> None:
    server.says(listed())
    assert cbatch("models", "--refresh", "--base-url", server.url).code == 0
    kept = users.read_bytes()
    server.says(*entries)
    refused = cbatch("models", "--refresh", "--base-url", server.url)
    assert refused.code == 1
    assert f"{server.url}/public/v1/models" in refused.err
    assert "nothing was written" in refused.err
    assert len(refused.err) < 1_500
    assert users.read_bytes() == kept


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"[]", b'{"data": {}}', b'{"data": [', b"[" * 100_000])
def test_an_answer_that_is_no_list_is_told(server: Server, cbatch: Cbatch, users: Path, body: bytes) -> None:
    server.body = body
    refused = cbatch("models", "--refresh", "--base-url", server.url)
    assert refused.code == 1
    assert "not a list of models" in refused.err
    assert not users.exists()


def test_a_corrupt_catalog_is_a_warning_and_a_refresh_heals_it(
    server: Server, cbatch: Cbatch, users: Path, job: JobFolder
) -> None:
    users.parent.mkdir(parents=True)
    users.write_text('{"prices_as_of": "2026-1')
    path = job.path / "job.yaml"
    path.write_text(json.dumps(job.settings))
    warned = cbatch("plan", path)
    assert warned.code == 0
    assert f"warning: {users}: not JSON, or cut off; ignored" in warned.err
    assert "cbatch models --refresh" in warned.err
    assert "(prices of 2026-10)" in warned.out
    assert cbatch("status", job.run.path).err.startswith("error:")  # it does not reckon, so it does not warn
    server.says(listed())
    assert cbatch("models", "--refresh", "--base-url", server.url).code == 0
    assert cbatch("plan", path).err == ""


def test_a_full_disk_keeps_the_old_catalog(server: Server, cbatch: Cbatch, tmp_path: Path) -> None:
    server.says(listed())
    folder = tmp_path / "small"
    file = folder / "catalog.json"
    with small_disk(folder, "64k"):
        assert cbatch("models", "--refresh", "--base-url", server.url, "--catalog", file).code == 0
        kept = file.read_bytes()
        with pytest.raises(OSError, match="No space left"):
            (folder / "filler").write_bytes(b"x" * 100_000)
        failed = cbatch("models", "--refresh", "--base-url", server.url, "--catalog", file)
        assert failed.code == 1
        assert f"{file}: cannot be written: No space left on device; what was there is unchanged" in failed.err
        assert "hint: free some space" in failed.err
        assert file.read_bytes() == kept
        assert {path.name for path in folder.iterdir()} == {"catalog.json", "filler"}


def test_a_folder_that_cannot_be_written_is_told(server: Server, cbatch: Cbatch, users: Path) -> None:
    server.says(listed())
    users.parent.parent.mkdir(parents=True)
    users.parent.write_text("a file where a folder should be")
    failed = cbatch("models", "--refresh", "--base-url", server.url)
    assert failed.code == 1
    assert f"{users}: cannot be written: " in failed.err
    assert users.parent.read_text() == "a file where a folder should be"


def test_catalog_without_refresh_and_a_file_that_is_no_catalog_are_refused(
    server: Server, cbatch: Cbatch, tmp_path: Path
) -> None:
    assert "add --refresh" in cbatch("models", "--catalog", "a.json", "--base-url", server.url).err
    other = tmp_path / "job.yaml"
    other.write_text("model: x\n")
    refused = cbatch("models", "--refresh", "--base-url", server.url, "--catalog", other)
    assert refused.code == 2
    assert f"--catalog {other}: not JSON" in refused.err
    assert other.read_text() == "model: x\n"
    assert server.seen == []


def test_telling_where_the_catalog_lies_loads_nothing_heavy(tmp_path: Path) -> None:
    """It is done before every command."""
    code = "import sys\nfrom cbatch.cli import invoke\ninvoke(['init', '--help'])\nprint(sorted(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(PIPELINE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'cbatch.catalog'" in done.stdout
    for heavy in ("aiohttp", "pyarrow", "pydantic", "orjson", "asyncio", "urllib.request", "dotenv"):
        assert f"'{heavy}'" not in done.stdout, heavy
