"""`cbatch status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cbatch.cli.shared import json_option, print_json
from cbatch.cli.words import duration, money, plural, rate, where_time_went
from cbatch.journal import Journal, Paid
from cbatch.ledger import unknown
from cbatch.rundir import RunDir, open_run
from cbatch.runlock import is_locked
from cbatch.session import unfinished_session


@click.command(epilog="Example: cbatch status runs/hello --json | jq .left")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Show how far a run is, what it cost, where its time went, and what is left.

    Reads only; a running job is not disturbed.
    """
    found = status(open_run(run_dir))
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        click.echo(line)


def status(folder: RunDir) -> dict[str, Any]:
    """The state of a run, from its journal and run.json. Raises JournalError."""
    info = folder.read_info()
    journal = Journal(folder.find_journal().journal)
    try:
        done, failed = journal.counts()
        rows = done + failed
        paid = Paid(**(journal.get("paid") or {}))
        live = journal.get("live")
        left_unknown = unknown(journal)
        parts = journal.parts()
        orphaned = journal.get("orphaned") or 0
        blocks = (journal.get("load") or {}).get("blocks")
    finally:
        journal.close()
    running = is_locked(*folder.locks)
    total = info.get("total")
    sessions = list(info.get("sessions", []))
    if running or info.get("state") == "running":  # killed: what its last heartbeat said
        sessions.append(unfinished_session(live, sessions, rows))
    spent = {
        name: sum(session.get(name, 0) for session in sessions)
        for name in (
            "elapsed_s",
            "sent",
            "answered",
            "retries",
            "rate_limited",
            "pace_wait_s",
            "backoff_s",
            "cpu_s",
            "server_queue_s",
        )
    }
    lost: dict[str, float] = {}
    for session in sessions:
        for cause, seconds in (session.get("time_lost_s") or {}).items():
            lost[cause] = lost.get(cause, 0.0) + seconds
    done = max(0, min(done - orphaned, total - failed)) if total is not None else done
    # A session that was killed before its first heartbeat left rows and no time: it says nothing about speed.
    timed = sum(session.get("answered", 0) for session in sessions if session.get("elapsed_s"))
    state = "running" if running else "killed" if info.get("state") == "running" else info.get("state", "unknown")
    return {
        "name": info.get("name"),
        "folder": str(folder.path),
        "state": state,
        "total": total,
        "done": done,
        "failed": failed,
        "left": max(0, total - done - failed) if total is not None else None,
        "sent_outcome_unknown_at_most": 0 if running else left_unknown.rows,
        "sent_outcome_unknown_usd": None if running else left_unknown.usd,
        "orphaned": orphaned,
        "parts": len(parts),
        "rows_in_parts": sum(part.rows for part in parts),
        "prompt_tokens": paid.prompt_tokens,
        "completion_tokens": paid.completion_tokens,
        "cost_usd": paid.known_usd,
        "rows_per_s": timed / spent["elapsed_s"] if spent["elapsed_s"] else None,
        **spent,
        "time_lost_s": lost,
        "blocks": len(blocks) if blocks is not None else None,
        "complete_blocks": sum(block["complete"] for block in blocks) if blocks is not None else None,
        "in_flight_limit": live.get("in_flight_limit") if running and live else None,
    }


def lines(s: dict[str, Any]) -> list[str]:
    """The status, for people."""
    total = f" of {s['total']:,}" if s["total"] is not None else ""
    left = f", {s['left']:,} left" if s["left"] is not None else ""
    speed = f", {rate(s['rows_per_s'])} rows/s" if s["rows_per_s"] else ""
    out = [
        f"{s['name']}: {s['state']}, {s['done']:,}{total} done, {s['failed']:,} failed{left}",
        f"  time      {duration(s['elapsed_s'])} in all sessions{speed}",
        f"  requests  {s['sent']:,} sent, {s['retries']:,} retried, {s['rate_limited']:,} answered with 429",
        f"  cost      {money(s['cost_usd'])}",
        f"  results   {plural(s['rows_in_parts'], 'row')} in {plural(s['parts'], 'part')}"
        f", {max(0, s['done'] + s['failed'] + s['orphaned'] - s['rows_in_parts']):,} in the journal",
    ]
    if s["blocks"] is not None:
        cut = s["blocks"] - s["complete_blocks"]
        not_whole = f", {cut:,} under way or cut off" if cut else ""
        out.append(f"  load      {plural(s['complete_blocks'], 'block')} measured{not_whole}")
    if waited := where_time_went(s):
        out.append(f"  waited    {waited}")
    if s["orphaned"]:
        out.append(f"  orphaned  {plural(s['orphaned'], 'row')} from prompts that left the input or were edited")
    if s["sent_outcome_unknown_at_most"] and s["left"]:
        usd = s["sent_outcome_unknown_usd"]
        dollars = f", at most {money(usd)}" if usd is not None else ""
        rows = plural(s["sent_outcome_unknown_at_most"], "prompt")
        out.append(f"  unknown   at most {rows} sent without a saved answer{dollars}")
    if s["state"] not in ("running", "finished"):
        out.append("the line that started it resumes it")
    return out
