"""A run directory: where things are, and `run.json`.

run.json is for people and scripts: the resolved job without secrets, versions, the source's
fingerprint, state, counts and summary. It is replaced whole, by temp file and rename; the truth
while a run lives is the journal.

The journal lies in the run directory, or with `--state-dir DIR` in

    DIR/<hash of the run directory's path>/<token>/

and run.json names that folder. The token is new whenever a journal is begun, so a name is never used
twice: what another machine, or a folder that was deleted since, left under DIR is not taken for it.
Only the journal goes there. results/ and staging/ stay together: a rename is atomic on one file system
only, and needs neither locks nor shared memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cbatch.errors import JobError, JournalError
from cbatch.parquet import fsync_folder, is_part

_JOURNAL = "journal.sqlite"
_LOCK = "journal.lock"


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run. `RunDir(path)` has its journal inside; `RunDir.at` finds it wherever it is."""

    path: Path
    state: Path | None = None  # the folder of the journal, where that is not `path`
    named: str | None = None  # the one that run.json named when this was made

    @classmethod
    def at(cls, path: Path, state_dir: Path | None = None) -> RunDir:
        """The run directory at `path`, with its journal where run.json or else `state_dir` says.

        Makes nothing: where a journal is to be begun, or moved to, `state` is a name that is free.
        """
        info = cls(path).read_info()
        named = info.get("state_dir")
        named = named if isinstance(named, str) else None
        if named is None and state_dir is None:
            return cls(path)
        there = _journal_folder(named, path)
        if there is not None and (state_dir is None or there.parent.parent == state_dir.resolve()):
            return cls(path, there, named)
        top = (Path(named).parent.parent if state_dir is None and named is not None else state_dir) or path
        slot = top.resolve() / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        if not info and (path / _LOCK).exists() and not (path / _JOURNAL).exists():
            # run.json was lost, and not the folder with it: the newest is the one it named.
            left = sorted(slot.glob(f"*/{_JOURNAL}"), key=lambda file: file.stat().st_mtime_ns)
            if left:
                return cls(path, left[-1].parent, None)
        return cls(path, slot / secrets.token_hex(4), named)

    @property
    def info_file(self) -> Path:
        """`run.json`."""
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        """The SQLite file; its -wal and -shm stand beside it."""
        return (self.state or self.path) / _JOURNAL

    @property
    def locks(self) -> tuple[Path, ...]:
        """The files that a running cbatch holds locked: the run directory's, and those beside its journal."""
        there = _journal_folder(self.named, self.path)
        folders = [folder.parent for folder in (self.state, there) if folder is not None]
        return tuple(folder / _LOCK for folder in (self.path, *folders))

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

    def settle(self) -> list[str]:
        """With the locks held: have the journal in `state`, and run.json name it. Returns notes for the user.

        A journal that is elsewhere is moved: copied, then named, then deleted where it was, so a kill
        leaves one that counts. Raises JournalError.
        """
        info = self.read_info()
        if info and info.get("state_dir") != self.named:
            raise JournalError(
                f"{self.path}: its journal is in {info.get('state_dir') or self.path} by now",
                hint="another cbatch was here meanwhile: run the same line again",
            )
        if self.state is None:
            return []
        notes = []
        there = self.path if self.named is None else _journal_folder(self.named, self.path)
        moved = False
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.state / "run").write_bytes(os.fsencode(self.path.resolve()))
            if not self.journal.exists():
                if there is not None and (there / _JOURNAL).exists():
                    _copy_journal(there, self.state)
                    moved = True
                elif info and self.named is not None:
                    notes.append(
                        f"{self.named}: the journal is not there any more, or is another folder's: "
                        "rows that are in results/ are known, what was in no part yet is sent again"
                    )
        except OSError as exc:
            raise JournalError(
                f"{self.state}: cannot be written: {exc.strerror}", hint="choose another folder with --state-dir DIR"
            ) from None
        if moved or (info and self.named != str(self.state)):
            self.write_info(info)
        for old in (self.path, there):
            if old is not None and old != self.state:
                with suppress(OSError):  # it counts no more, and nothing looks for it
                    _delete_journal(old)
                    if old != self.path:
                        (old / "run").unlink()
                        old.rmdir()
        return notes

    def find_journal(self) -> RunDir:
        """This; raises JournalError, saying what to do, where the journal that run.json names is not to be seen."""
        if self.named is not None and not self.journal.exists():
            raise JournalError(
                f"{self.path}: its journal is not there: {self.named}",
                hint="is it on another machine? the same `cbatch run` line makes it again from results/",
            )
        return self

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
        """P6: replace run.json, which then also names the folder of the journal. Raises JournalError."""
        info = {**info, "state_dir": str(self.state)} if self.state is not None else info
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
        for folder in (self.state, _journal_folder(self.named, self.path), self.path):
            if folder is not None:
                _delete_journal(folder)
        for path in (*self.parts, *(self.path / "staging").glob("part-*.parquet")):
            path.unlink()
        self.info_file.unlink(missing_ok=True)


def _journal_folder(named: str | None, run: Path) -> Path | None:
    """The folder that run.json names, if a journal is in it and the run directory is not a copy of the one it is of."""
    if named is None or not os.access(Path(named) / _JOURNAL, os.F_OK):
        return None
    try:
        owner = Path(os.fsdecode((Path(named) / "run").read_bytes()))
        is_copy = not owner.samefile(run) and RunDir(owner).read_info().get("state_dir") == named
    except OSError:  # it is no longer where it was: moved
        is_copy = False
    return None if is_copy else Path(named)


def _copy_journal(old: Path, new: Path) -> None:
    for suffix in ("-wal", ""):  # the one that makes it a journal last
        source = old / f"{_JOURNAL}{suffix}"
        if source.exists():
            part = Path(shutil.copy(source, new / f"{_JOURNAL}{suffix}.tmp"))
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(new / f"{_JOURNAL}{suffix}")
    fsync_folder(new)


def _delete_journal(folder: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{_JOURNAL}{suffix}").unlink(missing_ok=True)


def open_run(path: Path) -> RunDir:
    """The run directory at `path`. Raises JournalError if no run has been there."""
    folder = RunDir.at(path)
    if not folder.is_run():
        runs = sorted(child.name for child in path.glob("*") if RunDir(child).is_run()) if path.is_dir() else []
        known = f"runs in it: {', '.join(runs[:10])}" if runs else "name the folder that holds run.json"
        raise JobError(f"{path}: not a run directory", hint=known)
    return folder
