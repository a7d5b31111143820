"""One model, in the formats that may be asked for. Names and fields are the official SDK's."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cbatch.sdk.models import BaseModel
from cbatch.sdk.types.model_list_response import _HuggingFaceCapabilities, _HuggingFacePricing, _OpenRouterPricing


class ModelMetadata(BaseModel):
    """A model."""

    id: str
    created: int | None = None
    object: Literal["model"] | None = None
    owned_by: str | None = None


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
    datacenters: list[OpenRouterModelDatacenter] | None = None
    description: str | None = None
    hugging_face_id: str | None = None
    input_modalities: list[str] | None = None
    openrouter: OpenRouterModelOpenrouter | None = None
    output_modalities: list[str] | None = None
    quantization: str | None = None
    supported_features: list[str] | None = None
    supported_sampling_parameters: list[str] | None = None


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
    capabilities: HuggingFaceModelCapabilities | None = None
    hugging_face_id: str | None = None
    object: Literal["model"] | None = None


class PublicModelArchitecture(BaseModel):
    """What it is."""

    modality: Literal["text", "text+vision", "multimodal"]
    tokenizer: str
    instruct_type: str | None = None


class PublicModelCapabilities(BaseModel):
    """What it can do."""

    function_calling: bool | None = None
    json_mode: bool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: bool | None = None
    response_format: bool | None = None
    streaming: bool | None = None
    structured_outputs: bool | None = None
    tool_choice: bool | None = None
    tools: bool | None = None
    vision: bool | None = None


class PublicModelLimits(BaseModel):
    """How much it takes."""

    max_completion_tokens: int
    max_context_length: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class PublicModelPricing(BaseModel):
    """USD per token, as texts."""

    completion: str
    prompt: str


class PublicModelSupportedParameters(BaseModel):
    """Which fields of a request it knows."""

    frequency_penalty: bool | None = None
    logit_bias: bool | None = None
    logprobs: bool | None = None
    max_completion_tokens: bool | None = None
    presence_penalty: bool | None = None
    repetition_penalty: bool | None = None
    seed: bool | None = None
    stop: bool | None = None
    temperature: bool | None = None
    top_logprobs: bool | None = None
    top_p: bool | None = None


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
    datacenter_locations: list[str] | None = None
    deprecated: bool | None = None
    hugging_face_id: str | None = None
    object: Literal["model"] | None = None
    preview: bool | None = None
    quantization: str | None = None


ModelRetrieveResponse: TypeAlias = ModelMetadata | OpenRouterModel | HuggingFaceModel | PublicModel
