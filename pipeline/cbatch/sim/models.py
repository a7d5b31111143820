"""The models a simulated account sees, and what each tier lets one organization send to them.

Figures: the provider's public model list (August 2026) and rate-limit page (September 2026). A figure that
was only reported by users is the middle of what they reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["EFFORTS", "MODELS", "TIERS", "Limits", "Model", "listed", "published"]

EFFORTS = ("none", "low", "medium", "high")
UNLIMITED = 1_000_000_000  # what the provider's headers show where there is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: sizes in tokens, speed in tokens per second, prices in USD per million tokens."""

    id: str
    name: str
    owner: str
    hugging_face_id: str
    created: int
    context: int
    max_output: int
    trial_context: int
    trial_max_output: int
    tokens_per_s: float
    usd_in: float
    usd_out: float
    preamble_tokens: int  # hidden tokens in front of every prompt, part of prompt_tokens
    fingerprint: str
    efforts: frozenset[str] = frozenset()  # accepted reasoning_effort values; empty: not a reasoning model
    default_effort: str = "none"
    think_tags: bool = True  # raw format: tags around the reasoning, or nothing between it and the answer
    raw_and_hidden: bool = True  # accepts reasoning_format raw and hidden
    can_disable: bool = False  # accepts the deprecated disable_reasoning
    vision: bool = False
    serial_tools: bool = True  # accepts parallel_tool_calls: false
    whole_tool_calls: bool = False  # streams a tool call in one fragment
    empty_deltas: bool = False  # may stream an empty delta in the middle
    prediction_details: bool = True  # reports accepted and rejected prediction tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Requests (r) and tokens (t) per second, minute, hour and day; None: no limit.

    `tpm` counts uncached tokens, `total_tpm` cached ones too, and so do `tph` and `tpd`.
    """

    rps: int | None = None
    rpm: int | None = None
    rph: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    total_tpm: int | None = None
    tph: int | None = None
    tpd: int | None = None
    images: int = 5  # per request


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        model.id: model
        for model in (
            Model(
                id="gpt-oss-120b",
                name="OpenAI GPT OSS",
                owner="OpenAI",
                hugging_face_id="openai/gpt-oss-120b",
                created=1754438400,
                context=131_072,
                max_output=40_960,
                trial_context=65_536,
                trial_max_output=32_768,
                tokens_per_s=1800.0,  # recorded 1400-2400; the catalogue says about 3000
                usd_in=0.35,
                usd_out=0.75,
                preamble_tokens=66,
                fingerprint="fp_4c26d27ac5dbffe28c72",
                efforts=frozenset({"low", "medium", "high"}),
                default_effort="medium",
                think_tags=False,
                serial_tools=False,
            ),
            Model(
                id="qwen-3.8-27b",
                name="Qwen 3.8 27B",
                owner="Qwen",
                hugging_face_id="Qwen/Qwen3.8-27B",
                created=1788393600,
                context=131_072,
                max_output=32_768,
                trial_context=65_536,
                trial_max_output=32_768,
                tokens_per_s=1600.0,
                usd_in=0.99,
                usd_out=1.49,
                preamble_tokens=9,
                fingerprint="fp_7be1c0a94d2f5836ea10",
                efforts=frozenset(EFFORTS),
                default_effort="high",
                vision=True,
            ),
            Model(
                id="gemma-4-31b",
                name="Gemma 4 31B",
                owner="Google",
                hugging_face_id="google/gemma-4-31b-it",
                created=1780272000,
                context=131_072,
                max_output=40_960,
                trial_context=65_536,
                trial_max_output=32_768,
                tokens_per_s=1850.0,
                usd_in=0.99,
                usd_out=1.49,
                preamble_tokens=17,
                fingerprint="fp_0d93a51be7724c68f2a1",
                efforts=frozenset(EFFORTS),
                raw_and_hidden=False,
                vision=True,
                prediction_details=False,
            ),
            Model(
                id="zai-glm-4.7",
                name="Z.ai GLM 4.7",
                owner="Z.ai",
                hugging_face_id="zai-org/GLM-4.7",
                created=1767657600,
                context=131_072,
                max_output=40_960,
                trial_context=65_536,
                trial_max_output=40_960,
                tokens_per_s=1000.0,
                usd_in=2.25,
                usd_out=2.75,
                preamble_tokens=12,
                fingerprint="fp_a33c042689e969567008",
                efforts=frozenset(EFFORTS),
                default_effort="high",
                can_disable=True,
                whole_tool_calls=True,
                empty_deltas=True,
            ),
        )
    }
)

_TRIAL = Limits(rpm=5, tpm=30_000, total_tpm=90_000, tph=1_000_000, tpd=1_000_000, images=2)

TIERS: Mapping[str, Mapping[str, Limits]] = MappingProxyType(
    {
        "free-trial": MappingProxyType(dict.fromkeys(MODELS, _TRIAL)),
        "developer": MappingProxyType(
            {
                "gpt-oss-120b": Limits(rpm=1_000, tpm=1_000_000, total_tpm=3_000_000),
                "qwen-3.8-27b": Limits(rpm=300, tpm=150_000, total_tpm=750_000, images=10),  # total 5x for now
                "gemma-4-31b": Limits(rpm=300, tpm=500_000, total_tpm=1_500_000),
                "zai-glm-4.7": Limits(rpm=500, tpm=500_000, total_tpm=1_500_000),
            }
        ),
        "unlimited": MappingProxyType(dict.fromkeys(MODELS, Limits())),
    }
)


def listed(model: Model) -> dict[str, object]:
    """One item of `GET /v1/models`; `created` is 0 there, also on the real service."""
    return {"id": model.id, "object": "model", "created": 0, "owned_by": "Cerebras"}


def published(model: Model) -> dict[str, object]:
    """One item of `GET /public/v1/models`: paid-tier sizes, prices as strings in USD per single token."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner,
        "name": model.name,
        "description": f"{model.name}, simulated.",
        "hugging_face_id": model.hugging_face_id,
        "pricing": {
            "prompt": f"{model.usd_in / 1e6:.8f}",
            "completion": f"{model.usd_out / 1e6:.8f}",
        },
        "capabilities": {
            "streaming": True,
            "function_calling": True,
            "structured_outputs": True,
            "vision": model.vision,
            "json_mode": True,
            "tools": True,
            "tool_choice": True,
            "parallel_tool_calls": model.serial_tools,
            "response_format": True,
            "reasoning": bool(model.efforts),
        },
        "supported_parameters": {
            "temperature": True,
            "top_p": True,
            "seed": True,
            "stop": True,
            "max_completion_tokens": True,
            "logprobs": False,
            "top_logprobs": False,
            "frequency_penalty": True,
            "presence_penalty": True,
            "logit_bias": True,
            "repetition_penalty": False,
        },
        "architecture": {
            "modality": "text+image" if model.vision else "text",
            "tokenizer": model.owner,
            "instruct_type": "harmony" if model.id.startswith("gpt-oss") else "chat",
        },
        "limits": {
            "max_context_length": model.context,
            "max_completion_tokens": model.max_output,
            "requests_per_minute": None,
            "tokens_per_minute": None,
        },
        "datacenter_locations": [],
        "deprecated": False,
        "preview": False,
        "quantization": "FP16/8 (weights only)",
    }
