"""The models that a key sees, in the three formats that may be asked for. Names and fields are the official SDK's."""

from __future__ import annotations

from typing import List, Literal, Optional, TypeAlias, Union  # noqa: UP035

from cbatch.sdk.models import BaseModel


class ModelMetadataListData(BaseModel):
    """A model."""

    id: str
    created: Optional[int] = None
    object: Optional[Literal["model"]] = None
    owned_by: Optional[str] = None


class ModelMetadataList(BaseModel):
    """All of them."""

    data: List[ModelMetadataListData]
    object: Optional[Literal["list"]] = None


class _OpenRouterPricing(BaseModel):
    completion: str
    prompt: str
    image: Optional[str] = None
    input_cache_read: Optional[str] = None
    input_cache_write: Optional[str] = None
    request: Optional[str] = None


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
    datacenters: Optional[List[OpenRouterModelsResponseDataDatacenter]] = None
    description: Optional[str] = None
    hugging_face_id: Optional[str] = None
    input_modalities: Optional[List[str]] = None
    openrouter: Optional[OpenRouterModelsResponseDataOpenrouter] = None
    output_modalities: Optional[List[str]] = None
    quantization: Optional[str] = None
    supported_features: Optional[List[str]] = None
    supported_sampling_parameters: Optional[List[str]] = None


class OpenRouterModelsResponse(BaseModel):
    """All of them, in OpenRouter's format."""

    data: List[OpenRouterModelsResponseData]


class _HuggingFacePricing(BaseModel):
    input: float
    output: float


class _HuggingFaceCapabilities(BaseModel):
    function_calling: Optional[bool] = None
    streaming: Optional[bool] = None
    structured_outputs: Optional[bool] = None
    vision: Optional[bool] = None


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
    capabilities: Optional[HuggingFaceModelsResponseDataCapabilities] = None
    hugging_face_id: Optional[str] = None
    object: Optional[Literal["model"]] = None


class HuggingFaceModelsResponse(BaseModel):
    """All of them, in Hugging Face's format."""

    data: List[HuggingFaceModelsResponseData]
    object: Optional[Literal["list"]] = None


ModelListResponse: TypeAlias = Union[ModelMetadataList, OpenRouterModelsResponse, HuggingFaceModelsResponse]
