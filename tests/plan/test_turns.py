"""States that models are timed in, and that nothing of them is left."""

import pytest
import torch
from families import tiny_model

from secateur.checkpoint.fingerprint import probe_tokens
from secateur.models.inventory import take_inventory
from secateur.models.trace import trace_blocks
from secateur.plan.layer_times import LayerKind, factored_layer, layer_milliseconds
from secateur.plan.skip import skipped
from secateur.plan.times import Setup, measure_times
from secateur.plan.turns import Variant, lower_quartile, milliseconds_in_turns, replaced
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress
from secateur.stages.drop_plan import block_sublayers

CPU = torch.device("cpu")


def test_calls_are_made_in_turns_within_their_states() -> None:
    model = tiny_model("llama", 2)
    other = torch.nn.Linear(32, 64, bias=False)
    seen: list[tuple[str, bool]] = []

    def noting(name: str) -> Variant:
        def call() -> None:
            seen.append((name, model.model.layers[0].mlp.up_proj is other))

        layers = {"model.layers.0.mlp.up_proj": other} if name == "other" else {}
        return Variant(call, lambda: replaced(model, layers))

    times = milliseconds_in_turns({n: noting(n) for n in ("plain", "other")}, CPU, 2)
    assert seen == [("plain", False), ("other", True)] * 3
    assert set(times) == {"plain", "other"}
    assert min(times.values()) >= 0


def test_layers_come_back_after_an_error() -> None:
    model = tiny_model("llama", 2)
    up = model.model.layers[0].mlp.up_proj
    with (
        pytest.raises(KeyError),
        replaced(model, {"model.layers.0.mlp.up_proj": torch.nn.Identity()}),
    ):
        raise KeyError
    assert model.model.layers[0].mlp.up_proj is up


def test_a_quarter_is_below() -> None:
    assert lower_quartile([5.0, 1.0, 3.0, 2.0, 4.0]) == 2.0
    assert lower_quartile([7.0]) == 7.0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_skipped_block_hands_on(family: str) -> None:
    model = tiny_model(family, 3)
    inventory = take_inventory(model)
    ids = probe_tokens(model)
    forms = trace_blocks(model, inventory.blocks, {}, ids).output_forms
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        with skipped(inventory.blocks.modules[1], forms[1]):
            without = model(input_ids=ids, use_cache=False).logits
        again = model(input_ids=ids, use_cache=False).logits
        del inventory.blocks.modules[1]
        removed = model(input_ids=ids, use_cache=False).logits if family == "gpt2" else without
    assert torch.equal(whole, again)
    assert not torch.equal(whole, without)
    assert torch.equal(without, removed)


def test_every_form_of_a_layer_is_timed() -> None:
    kind = LayerKind(48, 32, True)
    times = layer_milliseconds(kind, (16,), True, 3, 5, torch.bfloat16, CPU, 1)
    assert set(times) == {"dense", "rank 16", "2:4"}
    assert min(times.values()) > 0
    layer = factored_layer(kind, 16, torch.float32, CPU)
    assert (layer.rank, layer.bias is not None) == (16, True)
    assert layer(torch.ones(2, 32)).shape == (2, 48)


def test_times_of_a_model_leave_it_as_it_was() -> None:
    model = tiny_model("llama", 3).bfloat16()
    inventory = take_inventory(model)
    sites = inventory.all_sites
    ids = probe_tokens(model)
    layers = dict(model.named_modules())
    setup = Setup(
        model,
        inventory.blocks,
        trace_blocks(model, inventory.blocks, {}, ids).output_forms,
        sites,
        {site.name: (16,) if min(site.shape) > 16 else () for site in sites},
        True,
        block_sublayers(model, inventory.blocks, ids),
        Workload(1, None, 8),
        CPU,
        2,
    )
    times = measure_times(setup, SilentProgress())
    assert dict(model.named_modules()) == layers
    assert not any("forward" in vars(module) for module in model.modules())
    ranks = {site.name: {"rank 16"} if min(site.shape) > 16 else set() for site in sites}
    for site in sites:
        assert set(times.forms[site.name]) == {"dense", "2:4", *ranks[site.name]}
    assert set(times.forms) == {site.name for site in sites}
    assert set(times.parts) == {(b, p) for b in range(3) for p in ("block", "attention", "mlp")}
    # Blocks of one shape take the same time.
    assert len({times.parts[block, "block"] for block in range(3)}) == 1
    assert 0.5 <= times.scale <= 2.0
