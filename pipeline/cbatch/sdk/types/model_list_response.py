"""The models that a key sees, in the three formats that may be asked for. Names and fields are the official SDK's."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cbatch.sdk.models import BaseModel


class ModelMetadataListData(BaseModel):
    """A model."""

    id: str
    created: int | None = None
    object: Literal["model"] | None = None
    owned_by: str | None = None


class ModelMetadataList(BaseModel):
    """All of them."""

    data: list[ModelMetadataListData]
    object: Literal["list"] | None = None


class _OpenRouterPricing(BaseModel):
    completion: str
    prompt: str
    image: str | None = None
    input_cache_read: str | None = None
    input_cache_write: str | None = None
    request: str | None = None


class OpenRouterModelsResponseDataPricing(_OpenRouterPricing):
    """USD per token, as texts."""


class OpenRouterModelsResponseDataDatacenter(BaseModel):
    """Where it runs."""

    country_code: str


class OpenRouterModelsResponseDataOpenrouter(BaseModel):
    """What OpenRouter calls it."""

    slug: str


class OpenRouterModelsResponseData(BaseModel):
    """A model in OpenRouter's format."""

    id: str
    context_length: int
    created: int
    max_output_length: int
    name: str
    pricing: OpenRouterModelsResponseDataPricing
    datacenters: list[OpenRouterModelsResponseDataDatacenter] | None = None
    description: str | None = None
    hugging_face_id: str | None = None
    input_modalities: list[str] | None = None
    openrouter: OpenRouterModelsResponseDataOpenrouter | None = None
    output_modalities: list[str] | None = None
    quantization: str | None = None
    supported_features: list[str] | None = None
    supported_sampling_parameters: list[str] | None = None


class OpenRouterModelsResponse(BaseModel):
    """All of them, in OpenRouter's format."""

    data: list[OpenRouterModelsResponseData]


class _HuggingFacePricing(BaseModel):
    input: float
    output: float


class _HuggingFaceCapabilities(BaseModel):
    function_calling: bool | None = None
    streaming: bool | None = None
    structured_outputs: bool | None = None
    vision: bool | None = None


class HuggingFaceModelsResponseDataPricing(_HuggingFacePricing):
    """USD per million tokens."""


class HuggingFaceModelsResponseDataCapabilities(_HuggingFaceCapabilities):
    """What it can do."""


class HuggingFaceModelsResponseData(BaseModel):
    """A model in Hugging Face's format."""

    id: str
    context_length: int
    created: int
    owned_by: str
    pricing: HuggingFaceModelsResponseDataPricing
    capabilities: HuggingFaceModelsResponseDataCapabilities | None = None
    hugging_face_id: str | None = None
    object: Literal["model"] | None = None


class HuggingFaceModelsResponse(BaseModel):
    """All of them, in Hugging Face's format."""

    data: list[HuggingFaceModelsResponseData]
    object: Literal["list"] | None = None


ModelListResponse: TypeAlias = ModelMetadataList | OpenRouterModelsResponse | HuggingFaceModelsResponse
