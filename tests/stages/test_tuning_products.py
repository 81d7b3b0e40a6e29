import pytest
import torch

from secateur.recipe.reconstruction import Reconstruction
from secateur.stages.prune_reconstruct import products_dtype


@pytest.mark.parametrize(
    ("device", "dtypes", "expected"),
    [
        ("cpu", {torch.bfloat16}, None),
        ("cpu", {torch.float32}, None),
        ("cuda", {torch.bfloat16}, torch.bfloat16),
        ("cuda", {torch.float16}, torch.bfloat16),
        ("cuda", {torch.float32}, None),
        ("cuda", {torch.bfloat16, torch.float32}, None),
    ],
)
def test_products_of_16_bit_blocks_are_in_16_bit_on_a_gpu(
    device: str, dtypes: set[torch.dtype], expected: torch.dtype | None
) -> None:
    assert products_dtype(Reconstruction(), device, dtypes) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_said_holds_everywhere(device: str, dtype: torch.dtype) -> None:
    said = Reconstruction(autocast=True)
    assert products_dtype(said, device, {dtype}) == torch.bfloat16
    assert products_dtype(Reconstruction(autocast=False), device, {dtype}) is None
