"""JSON -> typed objects: valid answers are validated, and those that are not are taken as they come.

A server that leaves out a field, or adds one, must not cost a paid answer: what is missing is None, what
is unknown is kept as an attribute, and what has the wrong type stays what it was.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
from pydantic_core import PydanticUndefined


class BaseModel(pydantic.BaseModel):
    """An object of an answer."""

    # defer_build: most of these are never asked for, and building all of them takes 40 ms
    model_config = pydantic.ConfigDict(extra="allow", defer_build=True)

    def to_dict(
        self,
        *,
        mode: Literal["json", "python"] = "python",
        use_api_names: bool = True,
        exclude_unset: bool = True,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        warnings: bool = True,
    ) -> dict[str, object]:
        """What the server sent, as a dict: what it did not send is not in it."""
        return self.model_dump(
            mode=mode,
            by_alias=use_api_names,
            exclude_unset=exclude_unset,
            exclude_defaults=exclude_defaults,
            exclude_none=exclude_none,
            warnings=warnings,
        )

    def to_json(
        self,
        *,
        indent: int | None = 2,
        use_api_names: bool = True,
        exclude_unset: bool = True,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        warnings: bool = True,
    ) -> str:
        """What the server sent, as JSON."""
        return self.model_dump_json(
            indent=indent,
            by_alias=use_api_names,
            exclude_unset=exclude_unset,
            exclude_defaults=exclude_defaults,
            exclude_none=exclude_none,
            warnings=warnings,
        )

    def __str__(self) -> str:
        return f"{self.__repr_name__()}({self.__repr_str__(', ')})"  # type: ignore[misc]  # pydantic's

    @classmethod
    def construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Any:
        """The object that `values` are, without a check, the objects in it included."""
        found: dict[str, Any] = {}
        given = set(_fields_set or ())
        fields = cls.model_fields
        for name, field in fields.items():
            value = values.get(name)
            if name in values:
                given.add(name)
            if value is not None:
                found[name] = constructed(value, field.annotation)
            else:
                default = field.get_default(call_default_factory=True)
                found[name] = None if default is PydanticUndefined else default
        made = cls.__new__(cls)
        object.__setattr__(made, "__dict__", found)
        object.__setattr__(made, "__pydantic_private__", None)
        object.__setattr__(made, "__pydantic_extra__", {k: v for k, v in values.items() if k not in fields})
        object.__setattr__(made, "__pydantic_fields_set__", given)
        return made

    model_construct = construct


def build(data: Any, kind: Any, union: Any = None, *, strict: bool = False) -> Any:
    """`data` as `kind`, or whatever of `union` it fits; taken as it comes where it fits none, unless `strict`.

    Raises pydantic.ValidationError.
    """
    if data is None or kind is object:
        return data
    try:
        return _adapter(kind).validate_python(data)
    except pydantic.ValidationError:
        if union is not None and union is not kind:
            with suppress(pydantic.ValidationError):
                return _adapter(union).validate_python(data)
        if strict:
            raise
        return constructed(data, kind)


def constructed(value: Any, kind: Any) -> Any:
    """`value` as `kind` as far as it fits, and itself where it does not."""
    origin = get_origin(kind) or kind
    if _is_union(kind):
        try:
            return _adapter(kind).validate_python(value)
        except pydantic.ValidationError:
            # Of several, the one that names itself as the value does; else the first.
            kinds = [one for one in get_args(kind) if one is not type(None)]
            return constructed(value, next((one for one in kinds if _names(one, value)), kinds[0]))
    if origin is list and isinstance(value, list):
        (inner,) = get_args(kind) or (object,)
        return [constructed(item, inner) for item in value]
    if origin is dict and isinstance(value, Mapping):
        inner = (get_args(kind) or (object, object))[1]
        return {key: constructed(item, inner) for key, item in value.items()}
    if isinstance(origin, type) and issubclass(origin, BaseModel) and isinstance(value, Mapping):
        return origin.construct(**value)
    if origin is float and type(value) is int:
        return float(value)
    return value


def _names(kind: Any, value: Any) -> bool:
    """Whether the value says in `object` that it is this kind."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping)):
        return False
    field = kind.model_fields.get("object")
    said = value.get("object")
    return field is not None and said is not None and said in get_args(field.annotation)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)
