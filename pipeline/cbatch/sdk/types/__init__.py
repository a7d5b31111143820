"""The shapes of answers, under the names that the official SDK gives them."""

from __future__ import annotations

from cbatch.sdk.types.completion import Completion
from cbatch.sdk.types.model_list_response import ModelListResponse
from cbatch.sdk.types.model_retrieve_response import ModelRetrieveResponse

__all__ = ["Completion", "ModelListResponse", "ModelRetrieveResponse"]
