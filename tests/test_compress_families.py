"""The whole chain on every family, against plain PyTorch and counts worked out by hand."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB_SIZE, tiny_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.verify import verify_checkpoint
from secateur.compress import compress, compress_with_report
from secateur.models.inventory import take_inventory
from secateur.report.record import DropRecord, LayerRecord, PruneRecord, Report, load_report
from secateur.update import factor_hessian, sparsegpt

TIED = {"gemma3", "gpt2", "opt"}
"""Families whose head is the embedding."""

NUM_BLOCKS = {"gemma3": 6}
"""So many that one of them sees everything; the others have two."""

ATTENTION = {f"self_attn.{kind}_proj" for kind in "qkvo"}
GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
EXPERTS = {
    f"mlp.experts.{expert}.{kind}" for expert in range(8) for kind in ("gate_up_proj", "down_proj")
}
FUSED = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
GPT2 = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
OPT = {*(f"self_attn.{kind}_proj" for kind in ("q", "k", "v", "out")), "fc1", "fc2"}
NEOX = {
    "attention.query_key_value",
    "attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
}
GPTJ = {*(f"attn.{kind}_proj" for kind in ("q", "k", "v", "out")), "mlp.fc_in", "mlp.fc_out"}


@dataclass(frozen=True)
class Architecture:
    """What one block consists of, worked out from the configuration by hand."""

    blocks: str
    names: tuple[set[str], ...]
    """By block, repeated; relative to the block."""
    weights: tuple[int, ...]
    """By block, repeated: weights in all its matrices."""
    parameters: tuple[int, ...]
    """By block, repeated: parameters that hold them (an expert is a slice of one)."""

    def site_names(self, num_blocks: int) -> set[str]:
        return {
            f"{self.blocks}.{block}.{name}"
            for block in range(num_blocks)
            for name in self.names[block % len(self.names)]
        }

    def total(self, by_block: tuple[int, ...], num_blocks: int) -> int:
        return sum(by_block[block % len(by_block)] for block in range(num_blocks))


# Width 32, 4 heads of 8, 2 of them for keys and values, 64 in between.
_QKVO = 32 * 32 + 16 * 32 + 16 * 32 + 32 * 32
_LLAMA = Architecture("model.layers", (ATTENTION | GATED,), (_QKVO + 3 * 64 * 32,), (7,))
# 8 experts: gate and up in one [128, 32], down [32, 64]; or half as wide.
_WIDE_EXPERTS = 8 * (128 * 32 + 32 * 64)
_NARROW_EXPERTS = 8 * (64 * 32 + 32 * 32)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3": _LLAMA,
    "phi3": Architecture("model.layers", (FUSED,), (_QKVO + 3 * 64 * 32,), (4,)),
    "gpt2": Architecture("transformer.h", (GPT2,), (12 * 32 * 32,), (4,)),
    "opt": Architecture("model.decoder.layers", (OPT,), (4 * 32 * 32 + 2 * 64 * 32,), (6,)),
    "gpt_neox": Architecture("gpt_neox.layers", (NEOX,), (4 * 32 * 32 + 2 * 64 * 32,), (4,)),
    "gptj": Architecture("transformer.h", (GPTJ,), (12 * 32 * 32,), (6,)),
    "mixtral": Architecture(
        "model.layers", (ATTENTION | EXPERTS,), (_QKVO + _WIDE_EXPERTS,), (4 + 2,)
    ),
    "qwen3_moe": Architecture(
        "model.layers",
        (ATTENTION | GATED, ATTENTION | EXPERTS),
        (_QKVO + 3 * 64 * 32, _QKVO + _NARROW_EXPERTS),
        (7, 4 + 2),
    ),
    "qwen3_moe_listed": Architecture(
        "model.layers",
        (ATTENTION | EXPERTS, ATTENTION | GATED),
        (_QKVO + _NARROW_EXPERTS, _QKVO + 3 * 64 * 32),
        (4 + 2, 7),
    ),
}
NUM_MATRICES = {
    "llama": 14,
    "mistral": 14,
    "qwen2": 14,
    "qwen3": 14,
    "gemma3": 42,
    "phi3": 8,
    "gpt2": 8,
    "opt": 12,
    "gpt_neox": 8,
    "gptj": 12,
    "mixtral": 40,
    "qwen3_moe": 27,
    "qwen3_moe_listed": 27,
}


NUM_TOKENS = 40 * 32


def some_ids(rows: int = 40, length: int = 32, seed: int = 0) -> Tensor:
    """By default so many that they are worked on in two batches, of 32 and 8 rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=generator)


def prune(**options: Any) -> dict[str, Any]:
    """A recipe of one stage; an expert counts from its first token."""
    if "sparsity" not in options:
        options.setdefault("pattern", "2:4")
    return {"stages": [{"stage": "prune", "min_expert_tokens": 1, **options}]}


def drop(*blocks: int) -> dict[str, Any]:
    return {"stage": "drop_blocks", "blocks": list(blocks)}


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def matrix(model: nn.Module, name: str) -> Tensor:
    """A matrix [N, K] as a view, found by its name alone."""
    parent, _, last = name.rpartition(".")
    module_name, _, expert = parent.rpartition(".")
    if expert.isdecimal() and module_name.endswith(".experts"):
        stack: Tensor = getattr(model.get_submodule(module_name), last).data
        return stack[int(expert)]
    module = model.get_submodule(name)
    weight = module.weight.data
    assert isinstance(weight, Tensor)
    return weight.T if type(module).__name__ == "Conv1D" else weight


def kept_of_four(matrix: Tensor) -> Tensor:
    """How many weights every group of four along K keeps: int64 [N, K / 4]."""
    return (matrix != 0).reshape(matrix.shape[0], -1, 4).sum(dim=2)


def best_two_of_four(score: Tensor) -> Tensor:
    order = score.reshape(-1, 4).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool)
    return mask.scatter(1, order[:, :2], True).view(score.shape)


@dataclass
class Seen:
    """What reached a matrix."""

    squares: Tensor
    num_tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        self.squares += rows.square().sum(dim=0)
        self.num_tokens += len(rows)


def watch(model: nn.Module, names: set[str], ids: Tensor) -> dict[str, Seen]:
    """Run the whole model once with plain hooks; experts are fed by hand."""
    seen = {
        name: Seen(torch.zeros(matrix(model, name).shape[1], dtype=torch.float64)) for name in names
    }

    def linear_hook(name: str) -> Callable[..., None]:
        return lambda _, args: seen[name].add(args[0])

    def experts_hook(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            hidden, chosen, _ = args
            for expert in range(8):
                rows = hidden[(chosen == expert).any(dim=1)]
                gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, dim=1)
                seen[f"{name}.{expert}.gate_up_proj"].add(rows)
                seen[f"{name}.{expert}.down_proj"].add(nn.functional.silu(gate) * up)

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name in names:
            hooks.append(module.register_forward_pre_hook(linear_hook(name)))
        elif f"{name}.0.gate_up_proj" in names:
            hooks.append(module.register_forward_pre_hook(experts_hook(name)))
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


def wanda_mask(model: nn.Module, name: str, seen: Seen) -> Tensor:
    weight = matrix(model, name)
    # No token, no norm: an expert that nothing reached is left to the size of its weights.
    norm = seen.squares.sqrt().float() if seen.num_tokens else torch.ones(weight.shape[1])
    return best_two_of_four(weight.abs() * norm)


def prune_by_hand(model: nn.Module, names: set[str], seen: dict[str, Seen]) -> None:
    for name in names:
        matrix(model, name).masked_fill_(~wanda_mask(model, name, seen[name]), 0.0)


@dataclass(frozen=True)
class Run:
    """One family, compressed and written."""

    family: str
    num_blocks: int
    dense: PreTrainedModel
    given: PreTrainedModel
    returned: nn.Module
    folder: Path
    report: Report

    @property
    def names(self) -> set[str]:
        return ARCHITECTURES[self.family].site_names(self.num_blocks)

    def names_in(self, block: int) -> set[str]:
        prefix = f"{ARCHITECTURES[self.family].blocks}.{block}."
        return {name for name in self.names if name.startswith(prefix)}

    @property
    def layers(self) -> dict[str, LayerRecord]:
        (record,) = self.report.stages
        assert isinstance(record, PruneRecord)
        return {layer.name: layer for layer in record.layers}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    family = request.param
    num_blocks = NUM_BLOCKS.get(family, 2)
    model = tiny_model(family, num_blocks)
    dense = copy.deepcopy(model)
    folder = tmp_path_factory.mktemp(family) / "out"
    returned = compress(model, prune(method="wanda"), calibration=some_ids(), output=folder)
    return Run(family, num_blocks, dense, model, returned, folder, load_report(folder))


def test_every_family_is_known_here() -> None:
    assert set(ARCHITECTURES) == set(NUM_MATRICES) == set(FAMILIES)


def test_the_same_object_comes_back(run: Run) -> None:
    assert run.returned is run.given
    assert not run.given.training


def test_nothing_is_left_behind_in_the_model(run: Run) -> None:
    # transformers notes the class when it saves.
    noted = {"architectures": [type(run.given).__name__]}
    assert run.given.config.to_dict() == {**run.dense.config.to_dict(), **noted}
    chosen = "_experts_implementation"
    assert getattr(run.given.config, chosen, None) == getattr(run.dense.config, chosen, None)
    before = dict(run.dense.named_modules())
    for name, module in run.given.named_modules():
        assert len(module._forward_hooks) == len(before[name]._forward_hooks), name
        assert len(module._forward_pre_hooks) == len(before[name]._forward_pre_hooks), name
        assert vars(module).keys() == vars(before[name]).keys(), name
    for name, parameter in run.given.named_parameters():
        assert parameter.requires_grad == run.dense.get_parameter(name).requires_grad
        assert parameter.grad is None


def test_as_many_matrices_as_the_architecture_has(run: Run) -> None:
    assert {site.name for site in take_inventory(run.given).all_sites} == run.names
    assert run.layers.keys() == run.names
    assert len(run.names) == NUM_MATRICES[run.family]
    pruned = [layer for layer in run.layers.values() if layer.sparsity == 0.5]
    assert len(pruned) == NUM_MATRICES[run.family]


def test_every_group_of_every_matrix_keeps_exactly_two(run: Run) -> None:
    for site in take_inventory(run.given).all_sites:
        assert (kept_of_four(site.weight) == 2).all(), site.name
        assert (kept_of_four(matrix(run.given, site.name)) == 2).all(), site.name


def test_as_many_zeros_as_worked_out_by_hand(run: Run) -> None:
    architecture = ARCHITECTURES[run.family]
    zeros = sum(int((parameter == 0).sum()) for parameter in run.given.parameters())
    assert zeros == architecture.total(architecture.weights, run.num_blocks) // 2
    assert run.report.size.num_zeros == zeros


def test_weights_that_stay_are_as_they_were(run: Run) -> None:
    for name in run.names:
        before, after = matrix(run.dense, name), matrix(run.given, name)
        assert torch.equal(after, before * (after != 0)), name


def test_everything_else_is_bitwise_unchanged(run: Run) -> None:
    architecture = ARCHITECTURES[run.family]
    before = run.dense.state_dict()
    changed = {
        name
        for name, value in run.given.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert len(changed) == architecture.total(architecture.parameters, run.num_blocks)
    for name in changed:
        assert name.startswith(f"{architecture.blocks}."), name
        module = run.given.get_submodule(name.rpartition(".")[0])
        kind = type(module).__name__
        assert kind in {"Linear", "Conv1D"} or kind.endswith("Experts"), name
        assert not name.endswith("bias"), name


def test_the_written_file_alone_has_the_zeros(run: Run, tmp_path: Path) -> None:
    """Whatever its names are: there, every expert's matrices are stored by themselves."""
    run.dense.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    stored = load_file(run.folder / "model.safetensors")
    assert stored.keys() == before.keys()
    sparse = {name: value for name, value in stored.items() if (value == 0).any()}
    architecture = ARCHITECTURES[run.family]
    weights = sum(value.numel() for value in sparse.values())
    assert weights == architecture.total(architecture.weights, run.num_blocks)
    for name, value in sparse.items():
        along_k = value.T if run.family == "gpt2" else value
        assert (kept_of_four(along_k) == 2).all(), name
    for name in set(stored) - set(sparse):
        assert torch.equal(stored[name], before[name]), name


@pytest.fixture(scope="module")
def reloaded(run: Run) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(run.folder)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def test_reloaded_logits_are_the_same_bit_for_bit(run: Run, reloaded: PreTrainedModel) -> None:
    ids = some_ids(3, 20, seed=1)
    logits = logits_of(run.given, ids)
    assert torch.equal(logits_of(reloaded, ids), logits)
    assert logits.isfinite().all()
    assert not torch.equal(logits_of(run.dense, ids), logits)


def test_reloaded_weights_are_the_same_bit_for_bit(run: Run, reloaded: PreTrainedModel) -> None:
    expected, found = run.given.state_dict(), reloaded.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_tied_weights_are_still_tied_after_reload(run: Run, reloaded: PreTrainedModel) -> None:
    for model in (run.given, reloaded):
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        assert head is not None
        assert (head.weight is embedding.weight) == (run.family in TIED)


def test_verify_passes(run: Run) -> None:
    checks = verify_checkpoint(run.folder)
    assert [check.name for check in checks] == ["manifest", "reload", "pattern", "logits"]
    assert all(check.passed for check in checks), checks


def test_statistics_come_from_the_pruned_blocks_before(run: Run) -> None:
    """Wanda by plain hooks and by hand, block after block: masks and errors of every block."""
    ids = some_ids()
    model = copy.deepcopy(run.dense)
    (record,) = run.report.stages
    assert isinstance(record, PruneRecord)
    for block in range(run.num_blocks):
        names = run.names_in(block)
        seen = watch(model, names, ids)
        for name in sorted(names):
            expected = wanda_mask(model, name, seen[name])
            assert torch.equal(matrix(run.given, name) != 0, expected), name
            assert run.layers[name].num_tokens == seen[name].num_tokens, name
        before = block_output(model, run, block, ids)
        prune_by_hand(model, names, seen)
        moved = (block_output(model, run, block, ids) - before).norm() / before.norm()
        assert record.blocks[block].output_error == pytest.approx(float(moved), rel=1e-3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.given.state_dict()[name]), name


def block_output(model: nn.Module, run: Run, block: int, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []
    module = model.get_submodule(f"{ARCHITECTURES[run.family].blocks}.{block}")
    hook = module.register_forward_hook(
        lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    logits_of(model, ids)
    hook.remove()
    return kept[0].double()


def test_statistics_of_the_dense_model_would_give_another_mask(run: Run) -> None:
    """The test above can tell the two apart."""
    names = run.names_in(run.num_blocks - 1)
    seen = watch(run.dense, names, some_ids())
    same = [
        torch.equal(matrix(run.given, name) != 0, wanda_mask(run.dense, name, seen[name]))
        for name in names
    ]
    assert not all(same)


# Mixtures of experts.


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe_listed"])
def test_experts_of_few_tokens_are_pruned_by_magnitude(family: str, method: str) -> None:
    ids = some_ids()
    dense = tiny_model(family)
    names = {f"model.layers.0.{name}" for name in EXPERTS}
    seen = watch(dense, names, ids)
    counts = sorted(
        seen[f"model.layers.0.mlp.experts.{expert}.down_proj"].num_tokens for expert in range(8)
    )
    # As many tokens as one of the experts in the middle got: that one still counts.
    least = counts[4]
    assert counts[0] < least < counts[-1]
    model, report = compress_with_report(
        copy.deepcopy(dense), prune(method=method, min_expert_tokens=least), calibration=ids
    )
    (record,) = report.stages
    assert isinstance(record, PruneRecord)
    by_name = {layer.name: layer for layer in record.layers}
    fallen = set()
    for name in sorted(names):
        layer, weight = by_name[name], matrix(dense, name)
        tokens = seen[name].num_tokens
        assert layer.num_tokens == tokens
        by_magnitude = weight * best_two_of_four(weight.abs())
        if tokens < least:
            fallen.add(name)
            assert layer.method == "magnitude"
            assert "pruned by magnitude" in layer.note
            assert f"{tokens} calibration tokens" in layer.note
            assert f"min_expert_tokens = {least}" in layer.note
            assert torch.equal(matrix(model, name), by_magnitude), name
        else:
            assert layer.method == method
            assert "magnitude" not in layer.note
            assert not torch.equal(matrix(model, name), by_magnitude), name
            if method == "wanda":
                mask = wanda_mask(dense, name, seen[name])
                assert torch.equal(matrix(model, name) != 0, mask), name
        assert (kept_of_four(matrix(model, name)) == 2).all(), name
    assert len(fallen) == 2 * sum(count < least for count in counts)
    for name, layer in by_name.items():
        if "experts" not in name:
            assert layer.method == method, name
            assert layer.num_tokens == ids.numel(), name


def test_experts_that_no_token_reaches_are_pruned_too() -> None:
    model, report = compress_with_report(
        tiny_model("mixtral"), prune(method="wanda"), calibration=some_ids(1, 2)
    )
    (record,) = report.stages
    assert isinstance(record, PruneRecord)
    idle = [layer for layer in record.layers if layer.num_tokens == 0]
    assert idle
    for layer in idle:
        assert layer.method == "magnitude"
        assert layer.output_error is None
        assert (kept_of_four(matrix(model, layer.name)) == 2).all()


# Methods, patterns and selection, on Llama.

LLAMA_NAMES = ARCHITECTURES["llama"].site_names(2)


def compressed(recipe: dict[str, Any], **options: Any) -> tuple[nn.Module, nn.Module, Report]:
    """(dense, compressed, report) of the tiny Llama."""
    dense = tiny_model("llama")
    options.setdefault("calibration", some_ids())
    model, report = compress_with_report(copy.deepcopy(dense), recipe, **options)
    return dense, model, report


def stage_of(report: Report) -> PruneRecord:
    (record,) = report.stages
    assert isinstance(record, PruneRecord)
    return record


def kept(model: nn.Module, name: str) -> Tensor:
    return matrix(model, name) != 0


def test_magnitude_keeps_the_larger_two_with_and_without_calibration() -> None:
    dense, model, report = compressed(prune(method="magnitude"), calibration=None)
    _, calibrated, other = compressed(prune(method="magnitude"))
    for name in LLAMA_NAMES:
        expected = matrix(dense, name) * best_two_of_four(matrix(dense, name).abs())
        assert torch.equal(matrix(model, name), expected), name
        assert torch.equal(matrix(calibrated, name), expected), name
    assert {layer.output_error for layer in stage_of(report).layers} == {None}
    assert {block.output_error for block in stage_of(report).blocks} == {None}
    assert report.calibration is None
    for layer in stage_of(other).layers:
        assert layer.output_error is not None
        assert 0 < layer.output_error < 1
    assert other.calibration is not None
    assert other.calibration.num_tokens == NUM_TOKENS


def test_sparsegpt_keeps_two_of_four_and_makes_up_for_the_loss() -> None:
    dense, model, report = compressed(prune(method="sparsegpt"))
    _, _, wanda = compressed(prune(method="wanda"))
    _, _, magnitude = compressed(prune(method="magnitude"))
    for name in LLAMA_NAMES:
        assert (kept_of_four(matrix(model, name)) == 2).all(), name
        left = kept(model, name)
        assert not torch.equal(matrix(model, name)[left], matrix(dense, name)[left]), name

    def error(report: Report) -> float:
        # Of block 0: later blocks have other inputs.
        layers = [layer for layer in stage_of(report).layers if layer.block == 0]
        return sum(layer.output_error or 0.0 for layer in layers) / len(layers)

    assert error(report) < error(wanda) < error(magnitude)


def test_sparsegpt_on_hessians_by_plain_hooks() -> None:
    """Block after block, with the Hessians of the blocks before as they were pruned."""
    dense, model, _ = compressed(prune(method="sparsegpt", damping=0.02))
    ids = some_ids()
    for block in range(2):
        prefix = f"model.layers.{block}."
        names = sorted(name for name in LLAMA_NAMES if name.startswith(prefix))
        inputs: dict[str, Tensor] = {}

        def keep(name: str, inputs: dict[str, Tensor] = inputs) -> Callable[..., None]:
            return lambda _, args: inputs.update({name: args[0].flatten(0, 1)})

        hooks = [dense.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
        logits_of(dense, ids)
        for hook in hooks:
            hook.remove()
        for name in names:
            hessian = 2.0 / len(ids) * (inputs[name].T @ inputs[name])
            expected, _ = sparsegpt(
                matrix(dense, name),
                factor_hessian(hessian, 0.02),
                lambda score: best_two_of_four(score.contiguous()),
                4,
            )
            # Sums in another order round differently, which may tip a score that is nearly tied.
            same = (expected != 0) == kept(model, name)
            assert same.float().mean() > 0.995, name
            difference = (expected - matrix(model, name))[same].norm() / expected.norm()
            assert difference < 0.02, name
            matrix(dense, name).copy_(matrix(model, name))


def test_samples_of_many_lengths() -> None:
    lengths = (5, 32, 32, 2, 17, 17, 31)
    samples = tuple(some_ids(1, length, seed=place)[0] for place, length in enumerate(lengths))
    dense, model, report = compressed(
        prune(method="wanda"), calibration=CalibrationTokens(samples, "lengths")
    )
    for block in range(2):
        names = {name for name in LLAMA_NAMES if name.startswith(f"model.layers.{block}.")}
        total = watch(dense, names, samples[0].unsqueeze(0))
        for sample in samples[1:]:
            for name, seen in watch(dense, names, sample.unsqueeze(0)).items():
                total[name].squares += seen.squares
                total[name].num_tokens += seen.num_tokens
        for name in names:
            assert total[name].num_tokens == sum(lengths)
            assert torch.equal(kept(model, name), wanda_mask(dense, name, total[name])), name
        prune_by_hand(dense, names, total)
    assert {layer.num_tokens for layer in stage_of(report).layers} == {sum(lengths)}


def test_errors_of_block_0_are_those_of_the_layers_own_outputs() -> None:
    """The report measures on a sample of tokens; here all of them."""
    dense, model, report = compressed(prune(method="wanda"))
    layer = dense.get_submodule("model.layers.0.self_attn.q_proj")
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logits_of(dense, some_ids())
    hook.remove()
    rows = inputs[0].reshape(-1, 32).double()
    before = rows @ matrix(dense, "model.layers.0.self_attn.q_proj").T.double()
    after = rows @ matrix(model, "model.layers.0.self_attn.q_proj").T.double()
    (record,) = (x for x in stage_of(report).layers if x.name.endswith("0.self_attn.q_proj"))
    assert record.output_error == pytest.approx(
        float((after - before).norm() / before.norm()), rel=0.05
    )


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_unstructured_removes_exactly_as_asked_within_the_published_group(
    method: str, fraction: float
) -> None:
    _, model, report = compressed(prune(method=method, sparsity=fraction, block_size=16))
    for name in LLAMA_NAMES:
        rows, columns = matrix(model, name).shape
        zeros = matrix(model, name) == 0
        if method == "wanda":
            assert (zeros.sum(dim=1) == int(fraction * columns)).all(), name
        elif method == "magnitude":
            assert int(zeros.sum()) == int(fraction * rows * columns), name
        else:
            for block in torch.split(zeros, 16, dim=1):
                assert int(block.sum()) == int(fraction * rows * 16), name
    expected = {"magnitude": "matrix", "wanda": "row", "sparsegpt": "block"}[method]
    assert stage_of(report).comparison_group == expected


def test_comparison_group_may_be_chosen() -> None:
    dense, model, _ = compressed(
        prune(method="magnitude", sparsity=0.5, comparison_group="row"), calibration=None
    )
    for name in LLAMA_NAMES:
        weight = matrix(dense, name).abs()
        half = weight.shape[1] // 2
        smallest = weight.argsort(dim=1)[:, :half]
        expected = torch.ones_like(weight, dtype=torch.bool).scatter(1, smallest, False)
        assert torch.equal(kept(model, name), expected), name


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_four_of_eight(method: str) -> None:
    _, model, _ = compressed(prune(method=method, pattern="4:8"))
    other = 0
    for name in LLAMA_NAMES:
        groups = kept(model, name).reshape(-1, 8)
        assert (groups.sum(dim=1) == 4).all(), name
        other += int((groups[:, :4].sum(dim=1) != 2).sum())
    # Not merely 2:4 twice.
    assert other > 0


def test_the_last_override_that_matches_holds() -> None:
    first_block = r"re:model\.layers\.0\."
    recipe = prune(
        method="wanda",
        overrides=[
            {"targets": [first_block], "pattern": "4:8"},
            {"targets": ["re:.*q_proj", "model.layers.1.mlp.up_proj"], "sparsity": 0.25},
            {"targets": ["model.layers.0.mlp.down_proj"], "pattern": "1:4"},
        ],
    )
    _, model, report = compressed(recipe)
    by_name = {layer.name: layer for layer in stage_of(report).layers}
    for name in LLAMA_NAMES:
        mask = kept(model, name)
        if name.endswith("q_proj") or name == "model.layers.1.mlp.up_proj":
            assert ((~mask).sum(dim=1) == mask.shape[1] // 4).all(), name
            assert by_name[name].pattern == "0.25 unstructured"
        elif name == "model.layers.0.mlp.down_proj":
            assert (mask.reshape(-1, 4).sum(dim=1) == 1).all(), name
            assert by_name[name].pattern == "1:4"
        elif name.startswith("model.layers.0."):
            assert (mask.reshape(-1, 8).sum(dim=1) == 4).all(), name
            assert (mask.reshape(-1, 4).sum(dim=1) != 2).any(), name
            assert by_name[name].pattern == "4:8"
        else:
            assert (mask.reshape(-1, 4).sum(dim=1) == 2).all(), name
            assert by_name[name].pattern == "2:4"


@pytest.mark.parametrize(
    ("options", "pruned"),
    [
        (
            {"ignore": ["model.layers.1.mlp.down_proj"]},
            LLAMA_NAMES - {"model.layers.1.mlp.down_proj"},
        ),
        ({"ignore": ["re:.*self_attn"]}, {name for name in LLAMA_NAMES if ".mlp." in name}),
        ({"targets": [r"re:model\.layers\.1\."]}, {n for n in LLAMA_NAMES if "layers.1" in n}),
        (
            {"targets": ["re:.*_proj"], "ignore": ["re:.*[qkvo]_proj", "re:.*gate"]},
            {name for name in LLAMA_NAMES if name.endswith(("up_proj", "down_proj"))},
        ),
        (
            {"ignore": ["model.layers.0.self_attn.q_proj"]},
            LLAMA_NAMES - {"model.layers.0.self_attn.q_proj"},
        ),
    ],
)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_is_not_chosen_is_bitwise_unchanged(
    method: str, options: dict[str, Any], pruned: set[str]
) -> None:
    dense, model, report = compressed(prune(method=method, **options))
    before = dense.state_dict()
    changed = {
        name.removesuffix(".weight")
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == pruned
    assert {layer.name for layer in stage_of(report).layers} == pruned
    for layer in stage_of(report).layers:
        assert (kept_of_four(matrix(model, layer.name)) == 2).all(), layer.name
        assert layer.num_tokens == NUM_TOKENS, layer.name


def test_an_ignored_layer_does_not_hide_the_statistics_of_those_that_share_its_input() -> None:
    """q, k and v are given the same tensor, and one of them may not be watched."""
    _, whole, _ = compressed(prune(method="wanda"))
    _, less, _ = compressed(prune(method="wanda", ignore=["re:.*q_proj"]))
    for kind in ("k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{kind}"
        assert torch.equal(matrix(less, name), matrix(whole, name))


@contextmanager
def rng_untouched() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_same_arguments_give_the_same_bits(method: str, tmp_path: Path) -> None:
    with rng_untouched():
        _, first, _ = compressed(prune(method=method), output=tmp_path / "out")
    torch.rand(3)
    _, second, _ = compressed(prune(method=method), device="cpu")
    expected = first.state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_dropout_takes_no_part_and_the_mode_stays(method: str) -> None:
    """GPT-2 drops out a tenth of its activations while it is trained."""
    expected = compress(tiny_model("gpt2"), prune(method=method), calibration=some_ids())
    model = tiny_model("gpt2").train()
    model.get_submodule("transformer.ln_f").eval()
    with rng_untouched():
        compress(model, prune(method=method), calibration=some_ids())
    modes = {name: module.training for name, module in model.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["transformer.ln_f"]
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_16_bit_models_stay_16_bit(dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    tiny_model("llama").to(dtype).save_pretrained(tmp_path / "in")
    model = compress(
        tmp_path / "in", prune(method=method), calibration=some_ids(), output=tmp_path / "out"
    )
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert {parameter.dtype for parameter in reloaded.parameters()} == {dtype}
    for name in LLAMA_NAMES:
        assert (kept_of_four(matrix(reloaded, name)) == 2).all(), name
    assert torch.equal(logits_of(reloaded, some_ids(2)), logits_of(model, some_ids(2)))


# Depth and width together.


def assert_verified(folder: Path) -> None:
    checks = verify_checkpoint(folder)
    assert [check.name for check in checks] == ["manifest", "reload", "pattern", "logits"]
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen2", "qwen3_moe"])
def test_drop_blocks_then_prune(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, 4)
    recipe = {"stages": [drop(1), prune(method="wanda")["stages"][0]]}
    _, report = compress_with_report(model, recipe, calibration=some_ids(), output=tmp_path / "out")
    sites = take_inventory(model).all_sites
    assert all((kept_of_four(site.weight) == 2).all() for site in sites)
    second = report.stages[1]
    assert isinstance(second, PruneRecord)
    assert {layer.name for layer in second.layers} == {site.name for site in sites}
    assert report.size.num_blocks == 3
    assert report.model.num_blocks == 4
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert reloaded.config.num_hidden_layers == 3
    assert torch.equal(logits_of(reloaded, some_ids(2)), logits_of(model, some_ids(2)))
    assert_verified(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen2", "qwen3_moe"])
def test_prune_then_drop_blocks(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, 4)
    ids = some_ids()
    pruned = compress(tiny_model(family, 4), prune(method="wanda"), calibration=ids)
    recipe = {"stages": [prune(method="wanda")["stages"][0], drop(2, 0)]}
    _, report = compress_with_report(model, recipe, calibration=ids, output=tmp_path / "out")
    names = [site.name for site in take_inventory(model).all_sites]
    blocks = take_inventory(model).blocks.name
    assert {name.removeprefix(f"{blocks}.").partition(".")[0] for name in names} == {"0", "1"}
    for name in names:
        place, _, rest = name.removeprefix(f"{blocks}.").partition(".")
        old = f"{blocks}.{ {'0': 1, '1': 3}[place] }.{rest}"
        assert torch.equal(matrix(model, name), matrix(pruned, old)), name
    assert isinstance(report.stages[1], DropRecord)
    assert report.stages[1].dropped == (0, 2)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(reloaded, some_ids(2)), logits_of(model, some_ids(2)))
    assert_verified(tmp_path / "out")


def test_dropped_by_influence_measured_on_the_pruned_model(tmp_path: Path) -> None:
    model = tiny_model("llama", 4)
    recipe = {
        "stages": [
            prune(method="magnitude")["stages"][0],
            {"stage": "drop_blocks", "count": 2},
            prune(method="wanda", pattern="1:4")["stages"][0],
        ]
    }
    _, report = compress_with_report(model, recipe, calibration=some_ids(), output=tmp_path / "out")
    second = report.stages[1]
    assert isinstance(second, DropRecord)
    by_hand = compress(tiny_model("llama", 4), prune(method="magnitude"))
    influences = [influence_of(by_hand, block) for block in range(4)]
    assert second.block_influence == pytest.approx(influences, rel=1e-3)
    least = sorted(range(4), key=lambda block: influences[block])[:2]
    assert second.dropped == tuple(sorted(least))
    for site in take_inventory(model).all_sites:
        assert ((site.weight != 0).reshape(-1, 4).sum(dim=1) == 1).all()
    assert_verified(tmp_path / "out")


def influence_of(model: nn.Module, block: int) -> float:
    pairs: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(f"model.layers.{block}").register_forward_hook(
        lambda _, args, output: pairs.append(
            (args[0], output[0] if isinstance(output, tuple) else output)
        )
    )
    logits_of(model, some_ids())
    hook.remove()
    entered, left = pairs[0]
    return 1.0 - float(nn.functional.cosine_similarity(entered, left, dim=-1).mean())


def test_the_last_stage_of_a_matrix_is_the_one_that_is_verified(tmp_path: Path) -> None:
    """SparseGPT's update may put back weights that an earlier stage had removed."""
    first = prune(method="wanda", pattern="2:4")["stages"][0]
    second = prune(method="sparsegpt", sparsity=0.6, block_size=16)["stages"][0]
    model = compress(
        tiny_model("llama"),
        {"stages": [first, second]},
        calibration=some_ids(),
        output=tmp_path / "out",
    )
    assert_verified(tmp_path / "out")
    assert all((matrix(model, name) == 0).float().mean() >= 0.58 for name in LLAMA_NAMES)
