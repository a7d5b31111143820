"""What a client can be asked: chat completions, text completions, models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload
from urllib.parse import quote

from cbatch.sdk.body import ChatParams, Sending, TextParams, Unsaid, check_names
from cbatch.sdk.given import given, not_given, omit
from cbatch.sdk.response import Streamed

if TYPE_CHECKING:
    from cbatch.sdk.calls import Call
    from cbatch.sdk.stream import AsyncStream, Stream
    from cbatch.sdk.types.chat.chat_completion import ChatChunkResponse, ChatCompletionResponse
    from cbatch.sdk.types.completion import CompletionResponse
    from cbatch.sdk.types.model_list_response import ModelMetadataList
    from cbatch.sdk.types.model_retrieve_response import ModelMetadata

Format = Literal["default", "openrouter", "huggingface"]
Messages = Iterable[Mapping[str, Any] | Any]  # objects of earlier answers, too

HEADER_ARGUMENTS = {"cf_ray": "CF-RAY", "x_amz_cf_id": "X-Amz-Cf-Id", "x_delay_time": "X-delay-time"}
NO_FIELDS = {*Sending.__optional_keys__, *HEADER_ARGUMENTS}


def _chat_types() -> tuple[Any, Any]:
    from cbatch.sdk.types.chat import chat_completion as types

    return types.ChatCompletionResponse, types.ChatCompletion


def _chunk_types() -> tuple[Any, Any]:
    from cbatch.sdk.types.chat import chat_completion as types

    return types.ChatChunkResponse, types.ChatCompletion


def _text_types() -> tuple[Any, Any]:
    from cbatch.sdk.types import completion as types

    return types.CompletionResponse, types.Completion


def _list_types() -> tuple[Any, Any]:
    from cbatch.sdk.types.model_list_response import ModelListResponse

    return ModelListResponse, ModelListResponse


def _model_types() -> tuple[Any, Any]:
    from cbatch.sdk.types.model_retrieve_response import ModelRetrieveResponse

    return ModelRetrieveResponse, ModelRetrieveResponse


def _call(
    client: Any,
    method: str,
    path: str,
    load: Any,
    sending: Mapping[str, Any],
    *,
    fields: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> Call:
    from cbatch.sdk.calls import Call, Wanted

    if fields is not None:
        fields = {**fields, **(sending.get("extra_body") or {})}
    named = {name: sending.get(argument, omit) for argument, name in HEADER_ARGUMENTS.items()}
    headers = {**{name: str(value) for name, value in given(named).items()}, **(sending.get("extra_headers") or {})}
    return Call(
        method=method,
        path=path,
        wanted=Wanted(
            load=load,
            stream=bool(fields and fields.get("stream")),
            is_async=client.is_async,
            strict=client._strict_response_validation,
        ),
        fields=fields,
        query={**given(dict(query or {})), **(sending.get("extra_query") or {})},
        extra_headers=headers or None,
        timeout=sending.get("timeout", not_given),
        model=str(fields["model"]) if fields else None,
    )


def _fields(first: dict[str, Any], stream: Any, params: Mapping[str, Any], accepted: Any) -> dict[str, Any]:
    """The fields of a request, in the SDK's order. Raises TypeError for one that does not exist."""
    check_names(params, accepted)
    rest = given({name: value for name, value in params.items() if name not in NO_FIELDS} | {"stream": stream})
    return given(first) | {name: rest[name] for name in sorted(rest)}


def _chat(client: Any, messages: Any, model: Any, stream: Any, params: Mapping[str, Any]) -> Call:
    fields = _fields({"messages": messages, "model": model}, stream, params, ChatParams)
    load = _chunk_types if fields.get("stream") else _chat_types
    return _call(client, "POST", "/v1/chat/completions", load, params, fields=fields)


def _text(client: Any, model: Any, prompt: Any, stream: Any, params: Mapping[str, Any]) -> Call:
    fields = _fields({"model": model, "prompt": prompt}, stream, params, TextParams)
    return _call(client, "POST", "/v1/completions", _text_types, params, fields=fields)


def _listed(client: Any, format: Any, params: Mapping[str, Any]) -> Call:
    check_names(params, Sending)
    return _call(client, "GET", "/v1/models", _list_types, params, query={"format": format})


def _model(client: Any, model_id: str, format: Any, params: Mapping[str, Any]) -> Call:
    if not model_id:
        raise ValueError(f"Expected a non-empty value for `model_id` but received {model_id!r}")
    check_names(params, Sending)
    return _call(
        client, "GET", f"/v1/models/{quote(model_id, safe='')}", _model_types, params, query={"format": format}
    )


class _Resource:
    """Methods of a client; `send` names what becomes of a call."""

    def __init__(self, client: Any, send: str = "_do") -> None:
        self._client = client
        self._send = getattr(client, send)

    @cached_property
    def with_raw_response(self) -> Any:
        """The same methods, which give the response itself: its headers, and `parse()`."""
        return type(self)(self._client, "_do_raw")

    @cached_property
    def with_streaming_response(self) -> Any:
        """The same methods, as context managers that give the response before its content was read."""
        return Streamed(self.with_raw_response, is_async=self._client.is_async)


class CompletionsResource(_Resource):
    """Text completions."""

    def create(
        self, *, model: str, prompt: Any, stream: bool | Unsaid = omit, **params: Unpack[TextParams]
    ) -> CompletionResponse | Stream[CompletionResponse] | Any:
        """The continuation of a prompt."""
        return self._send(_text(self._client, model, prompt, stream, params))


class AsyncCompletionsResource(_Resource):
    """Text completions."""

    async def create(
        self, *, model: str, prompt: Any, stream: bool | Unsaid = omit, **params: Unpack[TextParams]
    ) -> CompletionResponse | AsyncStream[CompletionResponse] | Any:
        """The continuation of a prompt."""
        return await self._send(_text(self._client, model, prompt, stream, params))


class ChatCompletionsResource(_Resource):
    """Chat completions."""

    @overload
    def create(
        self, *, messages: Messages, model: str, stream: Literal[True], **params: Unpack[ChatParams]
    ) -> Stream[ChatChunkResponse]: ...

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[False] | Unsaid = omit,
        **params: Unpack[ChatParams],
    ) -> ChatCompletionResponse: ...

    @overload
    def create(
        self, *, messages: Messages, model: str, stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletionResponse | Stream[ChatChunkResponse]: ...

    def create(
        self, *, messages: Messages, model: str, stream: bool | Unsaid = omit, **params: Unpack[ChatParams]
    ) -> Any:
        """The answer to a conversation, or with `stream=True` its chunks as they come. Raises APIError."""
        return self._send(_chat(self._client, messages, model, stream, params))


class AsyncChatCompletionsResource(_Resource):
    """Chat completions."""

    @overload
    async def create(
        self, *, messages: Messages, model: str, stream: Literal[True], **params: Unpack[ChatParams]
    ) -> AsyncStream[ChatChunkResponse]: ...

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str,
        stream: Literal[False] | Unsaid = omit,
        **params: Unpack[ChatParams],
    ) -> ChatCompletionResponse: ...

    @overload
    async def create(
        self, *, messages: Messages, model: str, stream: bool, **params: Unpack[ChatParams]
    ) -> ChatCompletionResponse | AsyncStream[ChatChunkResponse]: ...

    async def create(
        self, *, messages: Messages, model: str, stream: bool | Unsaid = omit, **params: Unpack[ChatParams]
    ) -> Any:
        """The answer to a conversation, or with `stream=True` its chunks as they come. Raises APIError."""
        return await self._send(_chat(self._client, messages, model, stream, params))


class ChatResource(_Resource):
    """Chat completions."""

    @cached_property
    def completions(self) -> ChatCompletionsResource:
        """Chat completions."""
        return ChatCompletionsResource(self._client, self._send.__name__)


class AsyncChatResource(_Resource):
    """Chat completions."""

    @cached_property
    def completions(self) -> AsyncChatCompletionsResource:
        """Chat completions."""
        return AsyncChatCompletionsResource(self._client, self._send.__name__)


class ModelsResource(_Resource):
    """The models that the key sees."""

    def list(self, *, format: Format | Unsaid = omit, **params: Unpack[Sending]) -> ModelMetadataList | Any:
        """All of them. Raises APIError."""
        return self._send(_listed(self._client, format, params))

    def retrieve(
        self, model_id: str, *, format: Format | Unsaid = omit, **params: Unpack[Sending]
    ) -> ModelMetadata | Any:
        """One of them. Raises NotFoundError for one that the key does not see."""
        return self._send(_model(self._client, model_id, format, params))


class AsyncModelsResource(_Resource):
    """The models that the key sees."""

    async def list(self, *, format: Format | Unsaid = omit, **params: Unpack[Sending]) -> ModelMetadataList | Any:
        """All of them. Raises APIError."""
        return await self._send(_listed(self._client, format, params))

    async def retrieve(
        self, model_id: str, *, format: Format | Unsaid = omit, **params: Unpack[Sending]
    ) -> ModelMetadata | Any:
        """One of them. Raises NotFoundError for one that the key does not see."""
        return await self._send(_model(self._client, model_id, format, params))
