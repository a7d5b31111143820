"""From arguments to a request: the parameters of `ask` and `chat`, and the line about an answer."""

from __future__ import annotations

from typing import Any

import pytest

from cbatch.cli.answered import figures
from cbatch.cli.sampling import _params
from cbatch.errors import JobError
from cbatch.schema import Usage


@pytest.mark.parametrize(
    ("texts", "params"),
    [
        pytest.param(["seed=7"], {"seed": 7}, id="a number"),
        pytest.param(["reasoning_effort=low"], {"reasoning_effort": "low"}, id="text"),
        pytest.param(['stop=["a","b"]'], {"stop": ["a", "b"]}, id="JSON"),
        pytest.param(["stop=a=b"], {"stop": "a=b"}, id="an equals sign in the value"),
    ],
)
def test_params_are_json_or_text(texts: list[str], params: dict[str, Any]) -> None:
    assert _params(None, None, tuple(texts)) == params


def test_options_and_params_together() -> None:
    assert _params(5, 0.5, ("seed=1",)) == {"seed": 1, "max_completion_tokens": 5, "temperature": 0.5}


@pytest.mark.parametrize(
    ("texts", "said", "hint"),
    [
        (["temprature=1"], "--param temprature: the API has no such field", "did you mean temperature?"),
        (["seed"], "--param seed: not like KEY=VALUE", "for example --param reasoning_effort=low"),
        (["=1"], "--param =1: not like KEY=VALUE", "for example --param reasoning_effort=low"),
        (["model=x"], "--param model: not a parameter here", "it is decided by --model"),
        (["stream=false"], "--param stream", "it is decided by nothing: answers are always streamed"),
        (["max_completion_tokens=auto"], "auto is for batches", "give a number, or leave it out"),
        (["temperature=3"], "--temperature: Input should be less than or equal to 2; read 3", None),
        (["seed=x"], "--param seed: Input should be a valid integer", None),
        (["max_tokens=1", "max_completion_tokens=2"], "--param: max_tokens: the old name", None),
    ],
)
def test_a_wrong_parameter_is_named_before_anything_is_sent(texts: list[str], said: str, hint: str | None) -> None:
    with pytest.raises(JobError) as caught:
        _params(None, None, tuple(texts))
    assert said in str(caught.value)
    assert caught.value.hint == hint


def test_the_line_about_an_answer_says_whose_clock_it_is_and_leaves_out_what_was_not_measured() -> None:
    line = figures(
        tokens_per_s=1843.2, source="server", ttft_s=0.0214, latency_s=0.348,
        usage=Usage(prompt_tokens=40, completion_tokens=1312), cost_usd=0.00132, attempts=3, wait_s=2.0,
    )  # fmt: skip
    assert line == (
        "1,843 tokens/s (server) · first token 21.4 ms, all 348 ms · 40 in, 1,312 out · $0.0013"
        " · waited 2.0 s for the limits · 3 attempts"
    )
    bare = figures(tokens_per_s=None, source=None, ttft_s=None, latency_s=None, usage=Usage(), cost_usd=None)
    assert bare == ""
