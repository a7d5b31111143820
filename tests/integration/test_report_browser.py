"""The HTML report in a real browser: it draws, asks no network, and fits a phone, a dark screen and paper.

Chromium is driven over its DevTools protocol, a websocket. Skipped where no Chromium is installed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cbatch.report import html
from cbatch.report.block import lines
from cbatch.report.evidence import read
from cbatch.report.findings import find
from cbatch.rundir import RunDir
from tests.made_runs import MadeBlock, made_batch, made_run

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
DEADLINE_S = 60.0
MODELS = ("gpt-oss-120b", "llama-3.3-70b", "zai-glm-4.7")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome in PATH"),
    pytest.mark.slow,
]


@dataclass(slots=True)
class Tab:
    """One open page: commands go in, what it logged and what it asked the network for come out."""

    socket: aiohttp.ClientWebSocketResponse
    number: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    async def command(self, method: str, **params: Any) -> Any:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    async def event(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(await self.socket.receive_json())

    async def run(self, expression: str) -> Any:
        found = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        buttons = 0 if kind == "mouseReleased" or button == "none" else 1
        about = {"x": x, "y": y, "button": button, "buttons": buttons, "clickCount": int(button != "none")}
        await self.command("Input.dispatchMouseEvent", type=kind, **about)

    def complaints(self) -> list[str]:
        """What was logged as an error or warning, or thrown."""
        found = [
            json.dumps(event["params"])[:500]
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
            or (event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
            or (event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
        ]
        return [text for text in found if "willReadFrequently" not in text]  # that is about `inked` below

    def asked(self) -> list[str]:
        """The addresses that were asked for, the page's own file left out."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a headless Chromium."""
    profile = tmp_path_factory.mktemp("chromium")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--no-first-run", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
        )
        assert process.stderr is not None
        try:
            port = None
            while port is None and (line := process.stderr.readline()):
                log.write(line)
                if found := re.search(rb"ws://127\.0\.0\.1:(\d+)/", line):
                    port = int(found[1])
            log.flush()
            if port is None:
                pytest.skip(f"{CHROMIUM} does not start here: {(profile / 'log').read_text()[-300:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


@asynccontextmanager
async def opened(
    devtools: str, file: Path, *, width: int = 1100, dark: bool = False, ready: bool = True
) -> AsyncIterator[Tab]:
    """A page in a tab of its own, once it has drawn itself."""
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        async with session.put(f"{devtools}/json/new?about:blank") as response:
            about = await response.json(content_type=None)
        async with session.ws_connect(about["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.command(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await tab.command("Emulation.setEmulatedMedia", features=[scheme])
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            await tab.command("Emulation.setDeviceMetricsOverride", **size)
            await tab.command("Page.navigate", url=file.as_uri())
            await tab.event("Page.loadEventFired")
            if ready:
                await tab.run(READY)
            yield tab
            await tab.command("Page.close")


READY = """new Promise(done => {
  const look = () => "ready" in document.documentElement.dataset ? done(true) : requestAnimationFrame(look);
  look();
})"""

# The pixels of each plot that have the colour of one of these groups, for each column: 0 where no line is drawn, or
# something lies over it.
INKED = """(names => {
  const probe = document.body.appendChild(document.createElement("i"));
  const inks = new Set(names.map(name => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).join();
  }));
  probe.remove();
  const found = {};
  for (const plot of document.querySelectorAll(".plot")) {
    const canvas = plot.querySelector("canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let n = 0;
    for (let i = 0; i < data.length; i += 4) n += inks.has(`${data[i]},${data[i + 1]},${data[i + 2]}`);
    found[plot.id] = n / canvas.width;
  }
  return found;
})"""


async def inked(tab: Tab, *colours: str) -> dict[str, float]:
    found: dict[str, float] = await tab.run(f"{INKED}({json.dumps(colours or ['ink', 'c0', 'c1', 'c2'])})")
    return found


def page_of(run: RunDir, file: Path) -> Path:
    evidence = read(run, also=html.ALSO)
    found = find(evidence)
    file.write_text(html.page(evidence, found, lines(evidence, found)), "utf-8")
    return file


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, streamed, with failures and refusals, and names that try to be markup."""
    folder = tmp_path_factory.mktemp("run")

    def change(row: dict[str, Any], number: int) -> None:
        longer(row, number)
        if row["status"] == "error":
            row["error_message"] = "</script><script>console.error('broke out')</script><img src=http://127.0.0.1:9/x>"
        if number % 7 == 0:
            row["id"] = f"<img src=x onerror=console.error({number})>"

    block = MadeBlock(failed=4, refused=3)
    run = made_batch(folder / "run", rows=400, stream=True, models=MODELS, concurrency=16, block=block, change=change)
    return page_of(run, folder / "report.html")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    blocks = [MadeBlock(level=level, rows=200, speed=2_100 - 10 * level) for level in (4.0, 16.0, 64.0)]
    return page_of(made_run(folder / "run", blocks, change=longer), folder / "report.html")


def longer(row: dict[str, Any], number: int) -> None:
    row["prompt_tokens"] = 50 + number % 400


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("name", ["page", "ladder"])
async def test_it_draws_every_plot_and_asks_nobody(
    devtools: str, request: pytest.FixtureRequest, name: str, width: int, dark: bool
) -> None:
    """No error, no warning, no request, nothing wider than the screen, and lines are not hidden by what is shaded."""
    async with opened(devtools, request.getfixturevalue(name), width=width, dark=dark) as tab:
        found = await inked(tab)
        assert len(found) == 7
        assert min(found.values()) > 0.5, found  # a line through the whole plot inks each of its columns
        assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
        ground = await tab.run("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark
        assert tab.complaints() == []
        assert tab.asked() == []


async def test_a_page_that_asks_the_network_or_complains_is_caught(devtools: str, tmp_path: Path) -> None:
    """The test above can fail."""
    file = tmp_path / "bad.html"
    file.write_text("<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('x'); missing()</script>")
    async with opened(devtools, file, ready=False) as tab:
        assert tab.asked() == ["http://127.0.0.1:9/x.png"]
        assert len(tab.complaints()) >= 2


@pytest.fixture
def defaced(page: Path, tmp_path: Path) -> Path:
    """A report in which markup got through."""
    evil = (
        "<img src='http://127.0.0.1:9/x.png'><script>window.ran = true</script><i id=e onclick='window.ran = true'></i>"
    )
    file = tmp_path / "page.html"
    file.write_text(page.read_text("utf-8").replace("</main>", f"{evil}</main>"), "utf-8")
    return file


async def test_markup_that_got_through_does_not_run(devtools: str, defaced: Path) -> None:
    """The content security policy is the second lock: it could neither run nor load anything."""
    async with opened(devtools, defaced) as tab:
        await tab.run("document.getElementById('e').click()")
        assert await tab.run("window.ran") is None
        assert len(tab.complaints()) >= 3


async def test_one_model_can_be_chosen_for_all_figures(devtools: str, page: Path) -> None:
    """Its bars, percentiles and slowest requests stay, those of others go; every model brings them back."""
    seen = """[...document.querySelectorAll('[data-group], [data-only]')].filter(e => e.offsetParent || e.offsetHeight)
        .map(e => e.dataset.group ?? 'only' + e.dataset.only)"""
    async with opened(devtools, page) as tab:
        before, ink = await tab.run(seen), await inked(tab)
        choose = "(v => {{ const s = document.getElementById('group'); s.value = v; s.onchange(); }})('{}')"
        await tab.run(choose.format("1"))
        assert set(await tab.run(seen)) == {"1", "only1"}
        assert max((await inked(tab, "c0", "c2")).values()) == 0  # only the second one's colour is left
        mine = await inked(tab, "c1")
        assert min(mine[plot] for plot in mine if plot != "plot-loop_lag") > 0.5  # that one is the client's
        await tab.run(choose.format(""))
        assert await tab.run(seen) == before
        assert set(before) == {"0", "1", "2", "only"}
        assert await inked(tab) == ink
        assert tab.complaints() == []


async def test_the_strips_over_time_are_zoomed_as_one_and_back(devtools: str, page: Path) -> None:
    """Dragging across one strip redraws all three; their lines stay visible; the button brings the whole range back."""
    async with opened(devtools, page) as tab:
        whole = await inked(tab)
        box = """(() => { const e = document.querySelector('#plot-ttft .u-over'); e.scrollIntoView({block: 'center'});
            const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"""
        left, top, width, height = await tab.run(box)
        y = top + height / 2
        await tab.mouse("mouseMoved", left + 0.3 * width, y, "none")
        await tab.mouse("mousePressed", left + 0.3 * width, y)
        await tab.mouse("mouseMoved", left + 0.6 * width, y)
        await tab.mouse("mouseReleased", left + 0.6 * width, y)
        zoomed = await inked(tab)
        strips = {"plot-ttft", "plot-in_flight", "plot-tokens"}
        assert {plot for plot in whole if whole[plot] != zoomed[plot]} == strips
        assert min(zoomed.values()) > 0.5
        button = "document.querySelector('#plot-ttft').closest('figure').querySelector('.reset')"
        assert await tab.run(f"{button}.hidden") is False
        await tab.run(f"{button}.click()")
        assert await inked(tab) == whole
        assert await tab.run(f"{button}.hidden") is True
        assert tab.complaints() == []


async def test_pointing_at_a_plot_says_its_values(devtools: str, page: Path) -> None:
    """The hint names each visible model, with the number under the pointer."""
    async with opened(devtools, page) as tab:
        box = """(() => { const e = document.querySelector('#plot-speed .u-over'); e.scrollIntoView({block: 'center'});
            const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()"""
        x, y = await tab.run(box)
        await tab.mouse("mouseMoved", x, y, "none")
        hint = await tab.run("document.querySelector('#plot-speed .tip').innerText")
        assert all(f"{model}, server's clock: " in hint for model in MODELS), hint


async def test_the_theme_can_be_switched(devtools: str, page: Path) -> None:
    """The plots are redrawn in the other theme's colours."""
    async with opened(devtools, page) as tab:
        await tab.run("document.getElementById('theme').click()")
        assert await tab.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert min((await inked(tab)).values()) > 0.5
        assert await tab.run("document.getElementById('theme').textContent") == "Light"


async def test_it_prints(devtools: str, page: Path) -> None:
    """A PDF of a few pages, from a dark phone as well, and the page is afterwards what it was."""
    async with opened(devtools, page, width=390, dark=True) as tab:
        before = await inked(tab)
        pdf = base64.b64decode((await tab.command("Page.printToPDF", printBackground=True))["data"])
        assert pdf.startswith(b"%PDF-")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
        await tab.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert await inked(tab) == before
        assert tab.complaints() == []


CONTRAST = """(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll("main *, .bar *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
    const [a, b] = [light(channels(svg ? style.fill : style.color)), light(behind(e))].sort((p, q) => q - p);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName} ${e.getAttribute("class")} ${ratio.toFixed(2)} ${e.textContent}`);
  }
  return bad;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_all_text_has_a_contrast_of_4_5(devtools: str, ladder: Path, dark: bool) -> None:
    async with opened(devtools, ladder, dark=dark) as tab:
        assert await tab.run(CONTRAST) == []
