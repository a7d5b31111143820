"""Comparison, or the refusal to make one -> what machines read: JSON, JUnit XML, GitHub annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from cbatch.compare.gates import Gate
from cbatch.compare.sides import Side
from cbatch.compare.stats import CONFIDENCE
from cbatch.compare.text import change, geomean, interval, last_line, value, verdict_word
from cbatch.compare.unlike import UnlikeRuns
from cbatch.compare.verdict import Comparison, Line, Pair


def as_dict(comparison: Comparison, *, strict: bool = False) -> dict[str, Any]:
    """Everything. Changes of times, speeds, tokens and money are relative (-0.044), those of shares differences."""
    return {
        "verdict": verdict_word(comparison),
        "exit_code": comparison.exit_code(strict=strict),
        "confidence": CONFIDENCE,
        "runs": [str(run.folder) for run in comparison.runs],
        "allowed": [{"what": one.what, "a": one.a, "b": one.b} for one in comparison.allowed],
        "comparisons": [_pair(pair) for pair in comparison.pairs],
        "history": None
        if comparison.history is None
        else {"runs": comparison.history.names, "skipped": comparison.history.skipped},
    }


def _pair(pair: Pair) -> dict[str, Any]:
    mean = geomean(pair)
    return {
        "a": _side(pair.a),
        "b": _side(pair.b),
        "design": pair.design.kind,
        "pairs": len(pair.design.pairs),
        "same_prompts": pair.design.same_prompts,
        "geomean_speed": None if mean is None else math.expm1(mean),
        "lines": [_line(line) for line in pair.lines],
        "notes": list(pair.notes),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "model": side.model,
        "level": side.level,
        "blocks": len(side.stretches),
        "requests": side.requests,
        "failed": side.counts["errors"][0],
    }


def _line(line: Line) -> dict[str, Any]:
    found, share = line.difference.change, line.measure.kind == "share"

    def size(number: float | None) -> float | None:
        return number if number is None or share else math.expm1(number)

    return {
        "metric": line.measure.name,
        "statistic": line.measure.statistic,
        "a": line.difference.a,
        "b": line.difference.b,
        "n_a": line.difference.n[0],
        "n_b": line.difference.n[1],
        "unit": "difference" if share else "relative",
        "change": size(found.point) if found else None,
        "low": size(found.low) if found else None,
        "high": size(found.high) if found else None,
        "p": found.p if found else None,
        "p_sign_flip": found.p_sign_flip if found else None,
        "p_holm": line.p_holm,
        "smallest_change": size(found.smallest) if found else None,
        "by_prompt": line.difference.by_prompt,
        "drift_allowance": math.expm1(line.difference.allowance),
        "word": line.word,
        "gate": line.gate.text if line.gate else None,
        "outcome": line.outcome,
        "note": line.note,
    }


def refusal(exc: UnlikeRuns) -> dict[str, Any]:
    """Why there is no verdict."""
    return {
        "verdict": "UNLIKE",
        "exit_code": exc.exit_code,
        "error": str(exc),
        "hint": exc.hint,
        "differences": [{"what": d.what, "a": d.a, "b": d.b, "allow": d.allow} for d in exc.differences],
    }


def junit(comparison: Comparison, *, strict: bool = False) -> str:
    """One test case for each gate: a failed one is a failure, an undecided one is skipped, or with `strict` fails."""
    suite = ElementTree.Element("testsuite", name="cbatch compare")
    for pair, line in comparison.gated:
        assert line.gate is not None
        case = _case(suite, line.gate.text, f"{pair.b.name} vs {pair.a.name} ({pair.b.model})")
        text = _sentence(line)
        if line.outcome == "FAIL" or (strict and line.outcome == "INCONCLUSIVE"):
            ElementTree.SubElement(case, "failure", message=text, type=str(line.outcome)).text = line.note or None
        elif line.outcome == "INCONCLUSIVE":
            ElementTree.SubElement(case, "skipped", message=f"INCONCLUSIVE: {text}; {line.note}")
        else:
            ElementTree.SubElement(case, "system-out").text = text
    return _xml(suite)


def junit_refusal(exc: UnlikeRuns, gates: Sequence[Gate]) -> str:
    """Every gate as an error: no verdict is not a pass."""
    suite = ElementTree.Element("testsuite", name="cbatch compare")
    for text in [gate.text for gate in gates] or ["alike"]:
        case = _case(suite, text, "cbatch compare")
        ElementTree.SubElement(case, "error", message=str(exc).splitlines()[0], type="UNLIKE").text = str(exc)
    return _xml(suite)


def _case(suite: ElementTree.Element, name: str, classname: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=name, classname=classname, time="0")


def _xml(suite: ElementTree.Element) -> str:
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite)))
    for node in suite.iter():  # a folder's name may hold what XML cannot
        node.text = node.text and _xml_text(node.text)
        for name, text in node.items():
            node.set(name, _xml_text(text))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _xml_text(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def workflow_commands(comparison: Comparison, *, strict: bool = False) -> list[str]:
    """GitHub workflow commands: an error for each failed gate, a warning for each undecided one, then the verdict."""
    out = []
    for pair, line in comparison.gated:
        assert line.gate is not None
        if line.outcome == "PASS":
            continue
        level = "error" if line.outcome == "FAIL" or strict else "warning"
        title = f"{line.outcome} {line.gate.text}"
        note = f"; {line.note}" if line.outcome == "INCONCLUSIVE" else ""
        out.append(_command(level, title, f"{pair.b.name} vs {pair.a.name}: {_sentence(line)}{note}"))
    return [*out, _command("notice", "cbatch compare", last_line(comparison, strict=strict))]


def workflow_refusal(exc: UnlikeRuns) -> list[str]:
    """The refusal as one annotation."""
    return [_command("error", "cbatch compare: no verdict", f"{exc}\n{exc.hint or ''}".strip())]


def _command(level: str, title: str, text: str) -> str:
    """A workflow command; what would end it early is escaped as GitHub wants it."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    title = title.replace("%", "%25").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{text}"


def _sentence(line: Line) -> str:
    a, b = (value(line.measure, number) for number in (line.difference.a, line.difference.b))
    ends = interval(line)
    return f"{line.measure.words} {a} -> {b}, {change(line)}" + (
        f" (95 % interval {ends})" if ends else f" ({line.note})"
    )
