"""The import graph is the architecture: imports go to rows below, and third parties have one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline" / "cbatch"

ROWS = [
    "errors catalog",
    "schema yamltext pace health throttle meter feed session turns responses batchfile",
    "gates answers measure formats parquet journal runlock filesystem purse replies metrics",
    "job response_format ratelimits sizes account gate rundir ledger publish sse transport prompts",
    "render joberrors jobschema loadplan retry crew plain report",
    "client jobfile source compare",
    "hedge resume verify calibrate environment export",
    "send plan simulate",
    "fleet connection",
    "engine library sdk",
    "load conversations gateway",
    "jobs",
    "sim",
    "cli",
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names.split()}

HOMES = {
    "aiohappyeyeballs": {"plain"},
    "aiohttp": {"transport", "plain", "sim", "gateway"},
    "aiolimiter": {"engine"},
    "backports": {"gateway"},
    "click": {"cli"},
    "dotenv": {"environment"},
    "ijson": {"formats"},
    "jinja2": {"render"},
    "jsonschema": {"answers", "response_format"},
    "markdown_it": {"cli"},
    "numpy": {"report", "compare"},
    "platformdirs": {"environment", "conversations"},
    "prometheus_client": {"metrics"},
    "prompt_toolkit": {"cli"},
    "pyarrow": {"source", "formats", "parquet"},
    "pydantic": {"job", "jobfile", "joberrors", "verify", "library", "sdk", "gateway"},
    "rich": {"cli"},
    "scipy": {"compare"},
    "sqlite3": {"journal", "conversations"},
    "tqdm": {"cli"},
    "uvloop": {"cli", "sdk"},
    "yaml": {"yamltext", "jobfile"},
    "yarl": {"transport", "plain"},
}


def _modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__main__.py" and p != PACKAGE / "__init__.py")


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rows_below_its_own(path: Path) -> None:
    name = _name(path)
    for imported in _imports(path):
        parts = imported.split(".")
        if parts[0] != "cbatch" or len(parts) < 2 or parts[1] == "__version__":
            continue
        target = parts[1]
        if target == name:
            continue  # inside one package
        assert ROW[target] < ROW[name], f"{name}.py -> {target}: row {ROW[target]} is not below row {ROW[name]}"


def test_the_simulator_shares_no_code_with_the_client() -> None:
    for path in (PACKAGE / "sim").glob("*.py"):
        assert not any(name.startswith("cbatch") for name in _imports(path)), path


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_party_names_have_one_home(path: Path) -> None:
    for imported in _imports(path):
        home = HOMES.get(imported.split(".")[0])
        assert home is None or _name(path) in home, f"{path.name} imports {imported}; its home is {home}"
