"""One model, in the formats that may be asked for. Names and fields are the official SDK's."""

from __future__ import annotations

from typing import List, Literal, Optional, TypeAlias, Union  # noqa: UP035

from cbatch.sdk.models import BaseModel
from cbatch.sdk.types.model_list_response import _HuggingFaceCapabilities, _HuggingFacePricing, _OpenRouterPricing


class ModelMetadata(BaseModel):
    """A model."""

    id: str
    created: Optional[int] = None
    object: Optional[Literal["model"]] = None
    owned_by: Optional[str] = None


class OpenRouterModelPricing(_OpenRouterPricing):
    """USD per token, as texts."""


class OpenRouterModelDatacenter(BaseModel):
    """Where it runs."""

    country_code: str


class OpenRouterModelOpenrouter(BaseModel):
    """What OpenRouter calls it."""

    slug: str


class OpenRouterModel(BaseModel):
    """A model in OpenRouter's format."""

    id: str
    context_length: int
    created: int
    max_output_length: int
    name: str
    pricing: OpenRouterModelPricing
    datacenters: Optional[List[OpenRouterModelDatacenter]] = None
    description: Optional[str] = None
    hugging_face_id: Optional[str] = None
    input_modalities: Optional[List[str]] = None
    openrouter: Optional[OpenRouterModelOpenrouter] = None
    output_modalities: Optional[List[str]] = None
    quantization: Optional[str] = None
    supported_features: Optional[List[str]] = None
    supported_sampling_parameters: Optional[List[str]] = None


class HuggingFaceModelPricing(_HuggingFacePricing):
    """USD per million tokens."""


class HuggingFaceModelCapabilities(_HuggingFaceCapabilities):
    """What it can do."""


class HuggingFaceModel(BaseModel):
    """A model in Hugging Face's format."""

    id: str
    context_length: int
    created: int
    owned_by: str
    pricing: HuggingFaceModelPricing
    capabilities: Optional[HuggingFaceModelCapabilities] = None
    hugging_face_id: Optional[str] = None
    object: Optional[Literal["model"]] = None


class PublicModelArchitecture(BaseModel):
    """What it is."""

    modality: Literal["text", "text+vision", "multimodal"]
    tokenizer: str
    instruct_type: Optional[str] = None


class PublicModelCapabilities(BaseModel):
    """What it can do."""

    function_calling: Optional[bool] = None
    json_mode: Optional[bool] = None
    parallel_tool_calls: Optional[bool] = None
    reasoning: Optional[bool] = None
    response_format: Optional[bool] = None
    streaming: Optional[bool] = None
    structured_outputs: Optional[bool] = None
    tool_choice: Optional[bool] = None
    tools: Optional[bool] = None
    vision: Optional[bool] = None


class PublicModelLimits(BaseModel):
    """How much it takes."""

    max_completion_tokens: int
    max_context_length: int
    requests_per_minute: Optional[int] = None
    tokens_per_minute: Optional[int] = None


class PublicModelPricing(BaseModel):
    """USD per token, as texts."""

    completion: str
    prompt: str


class PublicModelSupportedParameters(BaseModel):
    """Which fields of a request it knows."""

    frequency_penalty: Optional[bool] = None
    logit_bias: Optional[bool] = None
    logprobs: Optional[bool] = None
    max_completion_tokens: Optional[bool] = None
    presence_penalty: Optional[bool] = None
    repetition_penalty: Optional[bool] = None
    seed: Optional[bool] = None
    stop: Optional[bool] = None
    temperature: Optional[bool] = None
    top_logprobs: Optional[bool] = None
    top_p: Optional[bool] = None


class PublicModel(BaseModel):
    """A model as it is described without a key."""

    id: str
    architecture: PublicModelArchitecture
    capabilities: PublicModelCapabilities
    created: int
    description: str
    limits: PublicModelLimits
    name: str
    owned_by: str
    pricing: PublicModelPricing
    supported_parameters: PublicModelSupportedParameters
    datacenter_locations: Optional[List[str]] = None
    deprecated: Optional[bool] = None
    hugging_face_id: Optional[str] = None
    object: Optional[Literal["model"]] = None
    preview: Optional[bool] = None
    quantization: Optional[str] = None


ModelRetrieveResponse: TypeAlias = Union[ModelMetadata, OpenRouterModel, HuggingFaceModel, PublicModel]
