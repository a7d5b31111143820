"""Gates of a comparison: what is read, what is refused, and FAIL, PASS, INCONCLUSIVE."""

from __future__ import annotations

import math
import re

import pytest

from cbatch.compare.gates import Outcome, parse
from cbatch.compare.metrics import NAMES, SHOWN, measure


@pytest.mark.parametrize(
    ("text", "name", "statistic", "below", "threshold"),
    [
        ("server_tokens_per_s < -3%", "server_tokens_per_s", "p50", True, math.log(0.97)),
        ("server_tokens_per_s<-3%", "server_tokens_per_s", "p50", True, math.log(0.97)),
        ("ttft_s p50 > +10%", "ttft_s", "p50", False, math.log(1.1)),
        ("ttft_s median > 10 %", "ttft_s", "p50", False, math.log(1.1)),
        ("latency_s p99.9 >= +5%", "latency_s", "p99.9", False, math.log(1.05)),
        ("cost_usd > +10%", "cost_usd", "mean", False, math.log(1.1)),
        ("completion_tokens p50 > +10%", "completion_tokens", "p50", False, math.log(1.1)),
        ("errors > +0.5pt", "errors", "share", False, 0.005),
        ("finish_length > +1 pt", "finish_length", "share", False, 0.01),
        ("e2e_tokens_per_s < +5%", "e2e_tokens_per_s", "p50", True, math.log(1.05)),
        ("server_tokens_per_s < −3%", "server_tokens_per_s", "p50", True, math.log(0.97)),
    ],
)
def test_a_gate_is_read(text: str, name: str, statistic: str, below: bool, threshold: float) -> None:
    gate = parse(text)
    assert (gate.measure.name, gate.measure.statistic, gate.below) == (name, statistic, below)
    assert gate.threshold == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("tfft_s > +10%", "did you mean ttft_s?", id="a name that is nearly one"),
        pytest.param("speed", "write METRIC [pNN|mean] < -N%", id="no operator"),
        pytest.param("errors > +5%", "such as 'errors > +0.5pt'", id="a share in percent"),
        pytest.param("ttft_s > +20ms", "`cbatch report --slo`", id="an absolute limit"),
        pytest.param("ttft_s > +20", "read the unit ''", id="no unit"),
        pytest.param("server_tokens_per_s < 3%", "'server_tokens_per_s < -3%' fails", id="lower by plus three"),
        pytest.param("errors p50 > +1pt", "has no p50", id="a median of failures"),
        pytest.param("ttft_s p100 > +1%", "'p100' is no statistic", id="p100"),
        pytest.param("ttft_s p0 > +1%", "'p0' is no statistic", id="p0"),
        pytest.param("ttft_s max > +1%", "'max' is no statistic", id="a maximum"),
        pytest.param("ttft_s < -100%", "nothing can fall by 100 %", id="less than nothing"),
        pytest.param("text > +1%", "no metric 'text'", id="a column that is no number"),
        pytest.param("retry_after_s > +1%", "no metric", id="a column that is no measurement"),
    ],
)
def test_a_wrong_gate_says_what_is_accepted(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse(text)
    assert text in str(caught.value)


def test_every_metric_can_be_gated_with_its_usual_statistic() -> None:
    for name in NAMES:
        unit = "pt" if measure(name).kind == "share" else "%"
        assert parse(f"{name} > +1{unit}").measure == measure(name)
    assert set(SHOWN) <= set(NAMES)


@pytest.mark.parametrize(
    ("text", "point", "low", "high", "significant", "outcome"),
    [
        pytest.param("ttft_s > +10%", 20, 15, 25, True, "FAIL", id="the whole interval is beyond"),
        pytest.param("ttft_s > +10%", 20, 15, 25, False, "FAIL", id="and that needs no p-value"),
        pytest.param("ttft_s > +10%", 12, 5, 19, True, "FAIL", id="significant, and the point is beyond"),
        pytest.param("ttft_s > +10%", 12, -5, 29, False, "INCONCLUSIVE", id="beyond by chance, maybe"),
        pytest.param("ttft_s > +10%", 8, 5, 11, True, "INCONCLUSIVE", id="significant, and not beyond"),
        pytest.param("ttft_s > +10%", 8, 7, 9, True, "PASS", id="slower for sure, but as much is accepted"),
        pytest.param("ttft_s > +10%", -20, -25, -15, True, "PASS", id="the good direction never fails"),
        pytest.param("server_tokens_per_s < -3%", -4.4, -5.1, -3.7, True, "FAIL", id="slower than accepted"),
        pytest.param("server_tokens_per_s < -3%", 4.4, 3.7, 5.1, True, "PASS", id="faster"),
        pytest.param("server_tokens_per_s < -3%", -1, -4, 2, False, "INCONCLUSIVE", id="the interval holds it"),
        pytest.param("server_tokens_per_s < +5%", 2, 1, 3, True, "FAIL", id="not the improvement asked for"),
        pytest.param("server_tokens_per_s < +5%", 4, 2, 6, True, "INCONCLUSIVE", id="maybe the one asked for"),
        pytest.param("server_tokens_per_s < +5%", 8, 6, 10, True, "PASS", id="the improvement asked for"),
    ],
)
def test_outcomes(text: str, point: float, low: float, high: float, significant: bool, outcome: Outcome) -> None:
    gate = parse(text)
    at, start, end = (math.log1p(number / 100) for number in (point, low, high))
    assert gate.decide(at, start, end, significant) == outcome


@pytest.mark.parametrize(("statistic", "floor"), [("p50", 1), ("p90", 64), ("p95", 130), ("p99", 662), ("p1", 662)])
def test_a_tail_has_a_floor_of_requests(statistic: str, floor: int) -> None:
    assert measure("ttft_s", statistic).floor == floor
    assert measure("ttft_s", "p99.9").floor == 6_636
