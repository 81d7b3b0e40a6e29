"""The entry point by which every process of vLLM learns of the method."""

from vllm.model_executor.layers.quantization import register_quantization_config

from secateur.integrations.layer_specs import QUANT_METHOD
from secateur.integrations.vllm.config import SecateurVllmConfig


def register() -> None:
    """Make vLLM know the method; called once a process or more often."""
    register_quantization_config(QUANT_METHOD)(SecateurVllmConfig)
