"""The same run over TLS: connections are opened gradually, and a certificate that is not trusted is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.integration.conftest import PIPELINE, questions

_SERVER = """
import asyncio, math, ssl, sys
from aiohttp import web
from cbatch.sim import SimConfig, create_app
async def main():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(sys.argv[1])
    runner = web.AppRunner(create_app(SimConfig(tier="unlimited", speed=math.inf)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()
asyncio.run(main())
"""
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PIPELINE), "CEREBRAS_API_KEY": "key"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A simulator behind TLS; `ca.pem` in tmp_path is who vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    command = [sys.executable, "-c", _SERVER, str(tmp_path / "server.pem")]
    with subprocess.Popen(command, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"https://localhost:{int(server.stdout.readline())}"
        assert server.stdin is not None
        server.stdin.close()


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "not trusted"])
def test_a_run_over_tls(tmp_path: Path, address: str, trusted: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(200)))
    (tmp_path / "job.yaml").write_text(
        "model: gpt-oss-120b\ninput: rows.jsonl\nprompt: '{{ question }}'\n"
        "limits: {concurrency: 100}\nretry: {attempts: 1}\n"
    )
    env = ENV | ({"SSL_CERT_FILE": str(tmp_path / "ca.pem")} if trusted else {})
    command = [sys.executable, "-m", "cbatch", "run", "job.yaml", "--base-url", address, "--json"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    summary = json.loads(ended.stdout)
    if trusted:
        assert (ended.returncode, summary["done"]) == (0, 200), ended.stderr
    else:
        assert (ended.returncode, summary["done"], summary["failed"]) == (1, 0, 0)  # nothing was sent: no row failed
        assert "certificate verify failed" in ended.stderr
