"""Everything a visitor is told to type works: jobs/*.yaml, the README's commands, every command's help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
GOLDEN = ROOT / "tests" / "golden"


def cbatch(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, on a clone that is not installed."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "pipeline"), "COLUMNS": "80"}
    command = [sys.executable, "-m", "cbatch", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.name)
def test_every_job_runs_on_the_simulator(job: Path, tmp_path: Path) -> None:
    """As its second line says, but with few rows and without waiting for a rate limit."""
    line = job.read_text("utf-8").splitlines()[1]
    assert line.startswith(f"# cbatch run jobs/{job.name} --sim")
    done = cbatch("run", job, "--sim", "--output", tmp_path / "run", "--limit", "3", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["done"] == summary["total"] > 0
    assert cbatch("verify", tmp_path / "run").returncode == 0


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.name)
def test_every_job_fits_the_published_schema(job: Path) -> None:
    schema = json.loads(cbatch("schema").stdout)
    jsonschema.validate(yaml.safe_load(job.read_text("utf-8")), schema)


def test_the_reference_job_names_every_key() -> None:
    """What job.yaml accepts and the reference does not show is a key that nobody finds."""
    schema = json.loads(cbatch("schema").stdout)
    text = (ROOT / "jobs" / "reference.yaml").read_text("utf-8")
    for name in ("Input", "Synthetic", "PromptSpec", "Limits", "Retry", "Timeouts", "Load", "Results"):
        for key, field in schema["$defs"][name]["properties"].items():
            if not field.get("deprecated"):
                assert re.search(rf"^(\s+|#\s+|\s+#\s+){key}:", text, re.M), f"{name}.{key}"
    for key, field in schema["properties"].items():
        if not field.get("deprecated"):
            assert re.search(rf"^(# )?{key}:", text, re.M), key


def test_a_clone_runs_uninstalled(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "pipeline", "run", "jobs/hello.yaml", "--sim", "--limit", "1", "--quiet"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_init_writes_a_job_that_runs_as_it_is(tmp_path: Path) -> None:
    assert cbatch("init", tmp_path / "new").returncode == 0
    done = cbatch("run", "job.yaml", "--sim", "--set", "limits.tier=null", cwd=tmp_path / "new")
    assert done.returncode == 0, done.stderr
    again = cbatch("init", tmp_path / "new")
    assert again.returncode == 2
    assert "exists already" in again.stderr


COMMANDS = (
    *("", "run", "plan", "status", "report", "compare", "verify", "init", "schema"),
    *("export", "models", "ping", "ask", "chat", "sessions", "serve", "sim"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c or "cbatch")
def test_help_texts_are_golden(command: str, request: pytest.FixtureRequest) -> None:
    """A change of a help text is a decision: `pytest --update-golden` records it."""
    done = cbatch(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert "Example: cbatch" in done.stdout
    golden = GOLDEN / f"help-{command or 'cbatch'}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(done.stdout, "utf-8")
    assert done.stdout == golden.read_text("utf-8")


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom cbatch.cli import invoke\ninvoke(['--help'])\nprint(sorted(sys.modules), file=sys.stderr)"
    env = os.environ | {"PYTHONPATH": str(ROOT / "pipeline")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    for heavy in (
        "aiohttp",
        "pyarrow",
        "pydantic",
        "jinja2",
        "yaml",
        "orjson",
        "asyncio",
        "tqdm",
        "prompt_toolkit",
        "rich",
    ):
        assert f"'{heavy}'" not in done.stderr, heavy


def test_the_readme_names_every_command_and_links_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for command in COMMANDS[1:]:
        assert f"cbatch {command}" in text, command
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target
    for path, test in re.findall(r"\[`(test_\w+)`\]\((tests/[\w/.]+)\)", text):
        assert f"def {path}(" in (ROOT / test).read_text("utf-8"), (path, test)


def test_the_readmes_first_block_is_one_line() -> None:
    """And it stands in the first screen."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("```"))
    assert start < 20
    assert lines[start + 2] == "```"
