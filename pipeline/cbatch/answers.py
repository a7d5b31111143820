"""Completion -> is it what params.response_format asked for?"""

from __future__ import annotations

import re
from typing import Any

import orjson

from cbatch.errors import JobError
from cbatch.schema import Completion


class AnswerCheck:
    """Checks answers against one JSON Schema; compiled once."""

    def __init__(self, schema: dict[str, Any]) -> None:
        import jsonschema  # 60 ms, and only jobs with a response_format need it
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
        from referencing.exceptions import Unresolvable

        # A registry is given so that a $ref to elsewhere is an error and not a download in mid-run.
        self._validator = jsonschema.validators.validator_for(schema)(schema, registry=REGISTRY)
        # What a schema that is valid as such may still raise when it is applied.
        self._unusable = (Unresolvable, re.error)

    def __call__(self, completion: Completion) -> str | None:
        """What is wrong with the answer, or None; fills in `parsed` and `valid`.

        Raises JobError if the schema refers to what is not there, or has a pattern that is none.
        """
        if completion.tool_calls:  # a turn that calls a tool carries no answer yet
            return None
        completion.valid = False
        try:
            parsed = orjson.loads(completion.text or "")
            orjson.dumps(parsed)  # reads 1,024 levels and writes 254: what cannot be stored is no answer
        except orjson.JSONDecodeError as exc:
            return f"not valid JSON: {exc.msg} at character {exc.pos}" if completion.text else "the answer is empty"
        except TypeError:
            return "nested too deeply to be stored"
        completion.parsed = parsed
        try:
            error = next(self._validator.iter_errors(completion.parsed), None)
        except RecursionError:
            return "nested too deeply to be checked"
        except self._unusable as exc:
            raise JobError(f"params.response_format: the schema cannot be applied: {exc}") from None
        if error is None:
            completion.valid = True
            return None
        return f"does not fit the schema at {error.json_path}: {error.message[:300]}"
