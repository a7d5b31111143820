"""A run directory: where things are, and `run.json`.

run.json is for people and scripts: the resolved job without secrets, versions, the source's
fingerprint, state, counts and summary. It is replaced whole, by temp file and rename; the truth
while a run lives is the journal.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cbatch.errors import JournalError
from cbatch.parquet import fsync_folder, is_part


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def info_file(self) -> Path:
        """`run.json`."""
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        """The SQLite file; its -wal and -shm stand beside it."""
        return self.path / "journal.sqlite"

    @property
    def lock(self) -> Path:
        """The file that a running cbatch holds locked."""
        return self.path / "journal.lock"

    @property
    def results(self) -> Path:
        """The dataset: Parquet parts and nothing else."""
        return self.path / "results"

    @property
    def parts(self) -> list[Path]:
        """The visible parts, in order."""
        return sorted(self.results.glob("*.parquet"))

    def check(self) -> None:
        """Raise JournalError where results/ cannot be a folder: better now than when all is paid for."""
        if self.results.exists() and not self.results.is_dir():
            raise JournalError(f"{self.results}: a file stands where results go", hint="choose another --output")

    def is_run(self) -> bool:
        """Whether a run has been here."""
        return self.info_file.exists() or self.journal.exists()

    def read_info(self) -> dict[str, Any]:
        """What run.json holds; {} where there is none or it is unreadable."""
        try:
            info = json.loads(self.info_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    def write_info(self, info: dict[str, Any]) -> None:
        """P6: replace run.json. Raises JournalError."""
        temporary = self.path / ".run.json.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(orjson.dumps(info, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.info_file)
            fsync_folder(self.path)
        except OSError as exc:
            raise JournalError(
                f"{self.info_file}: cannot be written: {exc.strerror}",
                hint="every answer that was counted is safe; free some space, then run the same line again",
            ) from None

    def clear(self) -> None:
        """Start over: delete what a run wrote here, and nothing else.

        Raises JournalError, before anything is deleted, if results/ holds something else.
        """
        for path in self.parts:
            try:
                ours = is_part(path)
            except OSError:
                ours = False
            if not ours:
                raise JournalError(f"{path}: not a part of a cbatch run, so not deleted", hint="move it away")
        # The journal first: killed in between, it must not know rows whose part is gone.
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.journal}{suffix}").unlink(missing_ok=True)
        for path in (*self.parts, *(self.path / "staging").glob("part-*.parquet")):
            path.unlink()
        self.info_file.unlink(missing_ok=True)
