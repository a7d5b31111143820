"""Completion -> is it what params.response_format asked for?"""

from __future__ import annotations

from typing import Any

import orjson

from cbatch.schema import Completion


class AnswerCheck:
    """Checks answers against one JSON Schema; compiled once."""

    def __init__(self, schema: dict[str, Any]) -> None:
        import jsonschema  # 60 ms, and only jobs with a response_format need it

        self._validator = jsonschema.validators.validator_for(schema)(schema)

    def __call__(self, completion: Completion) -> str | None:
        """What is wrong with the answer, or None; fills in `parsed` and `valid`."""
        if completion.tool_calls:  # a turn that calls a tool carries no answer yet
            return None
        completion.valid = False
        try:
            completion.parsed = orjson.loads(completion.text or "")
        except orjson.JSONDecodeError as exc:
            return f"not valid JSON: {exc.msg} at character {exc.pos}" if completion.text else "the answer is empty"
        error = next(self._validator.iter_errors(completion.parsed), None)
        if error is None:
            completion.valid = True
            return None
        return f"does not fit the schema at {error.json_path}: {error.message[:300]}"
