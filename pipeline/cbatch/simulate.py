"""The embedded simulator: what --sim and `Client(sim=True)` talk to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cbatch import environment
from cbatch.errors import RunStopped

_SOURCE = str(Path(__file__).resolve().parents[1])  # a clone runs uninstalled
SIM_START_S = 30.0  # a cold start of a second Python on a busy machine


@asynccontextmanager
async def simulator(tier: str) -> AsyncIterator[str]:
    """A simulator in a process of its own, so that it shares no event loop with what it is measured by.

    It ends when its stdin closes: however this process dies, no simulator is left behind.
    """
    # The key is not for it: what a process does not have, it cannot show.
    env = {name: value for name, value in os.environ.items() if name != environment.KEY_NAME}
    path = os.pathsep.join(p for p in (_SOURCE, os.environ.get("PYTHONPATH")) if p)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cbatch", "sim", "--port", "0", "--tier", tier, "--until-stdin-closes",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**env, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the run, which drains; the simulator must outlive that
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(SIM_START_S):
                address = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            address = ""
        if not address.startswith("http"):
            raise RunStopped("the embedded simulator did not start", hint="try `cbatch sim --port 0`")
        yield address
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(3):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
