"""An nginx of our own that answers every chat completion at once: the server that is never the bottleneck.

One worker process, a fixed answer from memory, no log. Its CPU is not the client's, so a client
that takes all of a core is measured and not the server.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "gpt-oss-120b"
START_S = 5.0  # how long nginx may take to listen

# About 750 bytes, every field a real answer has.
ANSWER = json.dumps(
    {
        "id": "chatcmpl-00000000-0000-4000-8000-000000000000",
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {
                    "content": "The capital of France is Paris. It lies on the Seine, in the north of the country.",
                    "reasoning": "The user asks for a capital. It is well known. Answer in one or two sentences.",
                    "role": "assistant",
                },
            }
        ],
        "created": 1767225600,
        "model": MODEL,
        "system_fingerprint": "fp_0123456789abcdef0123",
        "object": "chat.completion",
        "usage": {
            "prompt_tokens": 84,
            "completion_tokens": 41,
            "total_tokens": 125,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 19},
        },
        "time_info": {
            "queue_time": 0.000312,
            "prompt_time": 0.002817,
            "completion_time": 0.018114,
            "total_time": 0.024009,
            "created": 1767225600.0,
        },
    }
)
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "Cerebras"}]})

_CONF = """
daemon off; master_process off; worker_rlimit_nofile 8192;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type application/json; keepalive_requests 1000000000; keepalive_timeout 300s;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 100m;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /v1/chat/completions {{ return 200 '{answer}'; }}
    location = /v1/models {{ return 200 '{models}'; }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """The base URL of an nginx that lives as long as the block. Exits with code 2 where nginx is missing."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        print("nginx is missing. Debian, Ubuntu: apt-get install nginx-light; macOS: brew install nginx")
        sys.exit(2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(_CONF.format(folder=folder, port=port, answer=ANSWER, models=MODELS), "utf-8")
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")])
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("nginx does not answer; see its messages above") from None
            time.sleep(0.02)
