"""What stands for "this was not said", where None is something one may say."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard, TypeVar

T = TypeVar("T")


class NotGiven:
    """The default of a parameter for which None has a meaning, such as `timeout`."""

    def __bool__(self) -> Literal[False]:
        """False, so that `if timeout` reads well."""
        return False

    def __repr__(self) -> str:
        return "NOT_GIVEN"


class Omit:
    """Leaves a field out of the request, or takes a default header away: `extra_headers={"User-Agent": Omit()}`."""

    def __bool__(self) -> Literal[False]:
        """False, as NotGiven is."""
        return False


NOT_GIVEN = not_given = NotGiven()
omit = Omit()


def is_given(value: T | NotGiven | Omit) -> TypeGuard[T]:
    """Whether somebody said something."""
    return not isinstance(value, NotGiven | Omit)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """What was given of `values`."""
    return {name: value for name, value in values.items() if is_given(value)}
