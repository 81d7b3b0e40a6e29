"""A model of a given shape with random weights."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.throughput.shapes import ModelShape


def random_model(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> nn.Module:
    """A causal language model of random weights, made on its device, in evaluation mode.

    Equal arguments give equal weights. The global random state is left as it was.

    Args:
        shape: its configuration. It has no end-of-text token, so that no text ends early.
        dtype: of the weights.
        device: where they are made: nothing travels.
        seed: of the weights.
    """
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(shape.model_type, **shape.fields, **tokens)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
