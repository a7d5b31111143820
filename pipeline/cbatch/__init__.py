"""The batch and parallel prompt pipeline for the Cerebras Inference API."""

__version__ = "0.1.0"
