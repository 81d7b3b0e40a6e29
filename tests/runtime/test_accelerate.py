"""A whole model accelerated and back: the same numbers, names and files."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, OWN_LINEARS, model_from, tiny_model
from integrations.compact_models import (
    IDS,
    RANK,
    assert_same,
    compressed,
    in_dtype,
    loaded,
    logits_of,
    pruned,
    saved,
    stored_config,
    taking_a_weight,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

import secateur
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.integrations.transformers_quantizer import mark_compressed
from secateur.models.fuse import fused_modules, unfuse
from secateur.models.swap import compressed_modules, convert_sparse24, replace_module, to_dense
from secateur.modules import LowRankLinear, Sparse24Linear
from secateur.modules.gated_mlp import GatedMlp
from secateur.modules.side_by_side import OneOfSeveral
from secateur.runtime import accelerate as accelerate_module
from secateur.runtime.acceleration import Acceleration, LayerRow
from secateur.runtime.changes import Changes
from secateur_kernels.dispatch import CPU, Entry, Measurement, Problem, Table
from secateur_kernels.layouts import LowRank

BF16 = torch.bfloat16
# A few roundings of two blocks, relative to the largest logit.
NEAR = 2**-5
ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"


def made(family: str, kind: str) -> PreTrainedModel:
    if kind == "dense":
        return in_dtype(tiny_model(family), BF16)
    return pruned(family) if kind == "pruned" else compressed(family, kind)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_as_before(model: nn.Module, before: dict[str, Tensor], logits: Tensor) -> None:
    after = model.state_dict()
    assert list(after) == list(before), "names, in their order"
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits_of(model), logits)


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["dense", "pruned", "low_rank", "sparse24_low_rank", "mixed"])
@pytest.mark.parametrize("family", [*FAMILIES, *OWN_LINEARS])
def test_forced_and_undone(family: str, kind: str) -> None:
    model = made(family, kind)
    before, logits = state_of(model), logits_of(model)
    trainable = [p.requires_grad for p in model.parameters()]
    kinds = {name: type(module) for name, module in model.named_modules()}
    done = secateur.accelerate(model, force=True)
    assert_near(logits_of(model), logits)
    covered = [name for row in done.rows for name in row.names]
    assert covered
    assert len(covered) == len(set(covered))
    if kind == "pruned":
        assert {row.form for row in done.rows} == {"2:4"}
    done.undo()
    assert_as_before(model, before, logits)
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert {name: type(module) for name, module in model.named_modules()} == kinds


def ways(done: Acceleration) -> dict[tuple[str, ...], str]:
    """By short names of layers, how they are fused, in the first block."""
    return {
        tuple(name.rpartition(".")[2] for name in row.names): row.fused
        for row in done.rows
        if ".0." in row.names[0]
    }


QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")


def test_what_is_fused_in_llama() -> None:
    model = made("llama", "pruned")
    done = secateur.accelerate(model, force=True)
    assert ways(done) == {
        QKV: "side by side", ("o_proj",): "", GATE_UP: "silu_and_mul", ("down_proj",): "",
    }  # fmt: skip
    mlp = model.get_submodule(MLP)
    assert isinstance(mlp, GatedMlp)
    assert isinstance(mlp.gate_up, Sparse24Linear)
    assert mlp.gate_up.activation == "silu_and_mul"
    # One module multiplies for three, and is there once.
    products = [n for n, m in model.named_modules() if isinstance(m, Sparse24Linear)]
    assert products[:2] == [f"{ATTENTION}.q_proj.together.product", f"{ATTENTION}.o_proj"]
    assert len(products) == 8


def test_another_gate_is_not_mistaken_for_silu() -> None:
    """Gemma's MLP has the same names and shapes, but gates with GELU."""
    done = secateur.accelerate(made("gemma3", "pruned"), force=True)
    assert ways(done)[GATE_UP] == "side by side"


@pytest.mark.parametrize("activation", ["gelu", "relu", "sigmoid", "gelu_pytorch_tanh", "silu"])
def test_gates_are_told_apart_by_what_they_do(activation: str) -> None:
    config = FAMILIES["llama"](1)
    config.hidden_act = activation
    model = in_dtype(model_from(config), BF16)
    done = secateur.accelerate(model, force=True)
    assert ways(done)[GATE_UP] == ("silu_and_mul" if activation == "silu" else "side by side")


@pytest.mark.parametrize("limited", ["gate", "silu", "up"])
@pytest.mark.parametrize("limit", [7.0, 16.0])
def test_a_limit_of_gate_or_up_is_kept(limited: str, limit: float) -> None:
    """As DeepSeek-V4 and Step 3.7 have it, far beyond what most inputs make."""
    model = made("llama", "dense")
    mlp = model.get_submodule(MLP)

    class LimitedMlp(type(mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            kinds = {"gate": self.gate_proj(x), "up": self.up_proj(x)}
            if limited != "silu":
                kinds[limited] = kinds[limited].clamp(max=limit)
            silu = torch.nn.functional.silu(kinds["gate"])
            silu = silu.clamp(max=limit) if limited == "silu" else silu
            found: Tensor = self.down_proj(silu * kinds["up"])
            return found

    mlp.__class__ = LimitedMlp
    done = secateur.accelerate(model, force=True)
    fused = {row.names[0].rpartition(".")[0]: row.fused for row in done.rows if "gate" in str(row)}
    assert fused == {MLP: "side by side", MLP.replace("0", "1"): "silu_and_mul"}


def test_an_mlp_that_overflows_early_is_fused() -> None:
    """As in fp16 where a few rows of gate and up are much longer than the others."""
    model = tiny_model("llama").half()
    mlp = model.get_submodule(MLP)
    for name, stretch in zip(GATE_UP, (64, 512), strict=True):
        mlp.get_submodule(name).weight.data[:2] *= stretch
    done = secateur.accelerate(model, force=True)
    assert ways(done)[GATE_UP] == "silu_and_mul"


def test_a_layer_with_gate_and_up_in_one() -> None:
    done = secateur.accelerate(made("phi3", "pruned"), force=True)
    assert ways(done)[("gate_up_proj",)] == "silu_and_mul"


def test_layers_of_other_forms_are_not_multiplied_together() -> None:
    done = secateur.accelerate(made("llama", "mixed"), force=True)
    assert {row.fused for row in done.rows} == {""}
    model = made("llama", "pruned")
    value = model.get_submodule(f"{ATTENTION}.v_proj")
    assert isinstance(value, nn.Linear)
    nn.init.ones_(value.weight)
    found = ways(secateur.accelerate(model, force=True))
    assert found[("q_proj", "k_proj")] == "side by side"
    assert found[("v_proj",)] == ""


def test_a_shared_down_is_multiplied_once() -> None:
    model = in_dtype(tiny_model("llama"), BF16)
    leader: LowRankLinear | None = None
    down = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    for name in QKV:
        linear = model.get_submodule(f"{ATTENTION}.{name}")
        assert isinstance(linear, nn.Linear)
        factors = LowRank(down, (linear.weight.detach() @ down.T), (linear.out_features,))
        layer = LowRankLinear.from_factors(factors, shares_down_with=leader)
        replace_module(model, f"{ATTENTION}.{name}", layer)
        leader = leader or layer
    before, logits = state_of(model), logits_of(model)
    done = secateur.accelerate(model, force=True)
    first = model.get_submodule(f"{ATTENTION}.q_proj")
    assert isinstance(first, OneOfSeveral)
    assert isinstance(first.shared.product, LowRankLinear)
    assert first.shared.product.down.shape == (16, 32)
    assert_near(logits_of(model), logits)
    done.undo()
    assert_as_before(model, before, logits)
    layers = compressed_modules(model)
    holders = {layers[f"{ATTENTION}.{name}"].down_holder() for name in QKV}  # type: ignore[union-attr]
    assert holders == {layers[f"{ATTENTION}.q_proj"]}


def test_a_cpu_leaves_layers_alone_unless_forced() -> None:
    for kind in ("pruned", "mixed"):
        model = made("llama", kind)
        modules = dict(model.named_modules())
        done = secateur.accelerate(model)
        assert dict(model.named_modules()) == modules
        assert done.note == "reference backend, no speed-up claimed"
        assert done.bytes_before == done.bytes_after
        assert all("no speed-up claimed" in row.reason for row in done.rows)


def cpu_table(microseconds: float) -> Table:
    """Down projections [32, 64] alone were measured, dense at 10 us."""
    problem = Problem("sparse24_linear", 1, 32, 64, BF16, CPU)
    times = [Measurement("dense", None, 10.0), Measurement("reference", None, microseconds)]
    return Table("cpu", (0, 0), {}, (Entry.of(problem, times),))


def test_measured_times_decide_on_a_cpu_too() -> None:
    model = made("llama", "pruned")
    done = secateur.accelerate(model, table=cpu_table(5.0))
    assert list(compressed_modules(model)) == [f"model.layers.{b}.mlp.down_proj" for b in range(2)]
    assert not fused_modules(model)
    reasons = {row.reason for row in done.rows if row.form == "2:4"}
    assert reasons == {
        "2.00 times as fast as dense (reference 5.0 us, dense 10.0 us, measured at 1 tokens)"
    }
    assert done.note == ""


def test_strict_makes_layers_dense_and_gives_them_back() -> None:
    model = compressed("llama")
    before, logits = state_of(model), logits_of(model)
    done = secateur.accelerate(model, policy="strict", table=cpu_table(20.0))
    assert f"{MLP}.down_proj" not in compressed_modules(model)
    assert len(compressed_modules(model)) == 12
    done.undo()
    assert_as_before(model, before, logits)
    secateur.accelerate(model, policy="memory", table=cpu_table(20.0))
    assert len(compressed_modules(model)) == 14


@pytest.mark.parametrize("kind", ["sparse24", "low_rank", "sparse24_low_rank"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_layers_that_were_made_dense_come_back_as_the_model_was_cast(
    kind: str, dtype: torch.dtype
) -> None:
    model, plain = compressed("llama", kind), compressed("llama", kind)
    name = f"{MLP}.down_proj"
    changes = Changes(model)
    changes.make_dense([name])
    assert name not in compressed_modules(model)
    model.to(dtype)
    changes.undo()
    assert_as_before(model, state_of(plain.to(dtype)), logits_of(plain))


def test_strict_keeps_dense_copies_until_undone() -> None:
    model = compressed("llama")
    entries = [
        Entry.of(
            Problem("sparse24_linear", m, 32, 64, BF16, CPU),
            [Measurement("dense", None, 10.0), Measurement("reference", None, time)],
        )
        for m, time in ((1, 5.0), (64, 15.0))
    ]
    table = Table("cpu", (0, 0), {}, tuple(entries))
    done = secateur.accelerate(model, policy="strict", batch_sizes=(1, 64), table=table)
    layer = compressed_modules(model)[f"{MLP}.down_proj"]
    assert isinstance(layer, Sparse24Linear)
    assert layer.dense is not None
    row = next(row for row in done.rows if row.names == (f"{MLP}.down_proj",))
    assert row.kernels == ((1, "reference"), (64, "dense"))
    assert row.bytes_after - row.bytes_before == 32 * 64 * 2
    done.undo()
    assert layer.dense is None


def test_canonical_layers_are_packed_and_unpacked_again() -> None:
    model = pruned("llama")
    model.get_submodule(f"{MLP}.up_proj").requires_grad_(False)
    convert_sparse24(model)
    before, logits = state_of(model), logits_of(model)
    names = [name for name, _ in model.named_parameters()]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    done = secateur.accelerate(model, force=True)
    assert all(m.is_packed for m in model.modules() if isinstance(m, Sparse24Linear))
    done.undo()
    assert_as_before(model, before, logits)
    assert [name for name, _ in model.named_parameters()] == names
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == frozen


def test_weights_that_cannot_be_packed_stay_dense_but_are_fused() -> None:
    model = pruned("llama", torch.float32)
    expected = logits_of(model)
    done = secateur.accelerate(model, force=True)
    assert {row.form for row in done.rows} == {"dense"}
    assert {row.reason for row in done.rows} == {"2:4, but float32 cannot be packed"}
    assert {row.fused for row in done.rows} == {"", "side by side", "silu_and_mul"}
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)


def test_without_fusing() -> None:
    model = pruned("llama")
    done = secateur.accelerate(model, force=True, fuse=False)
    assert not fused_modules(model)
    assert len(compressed_modules(model)) == len(done.rows) == 14


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["pruned", "low_rank"])
def test_a_whole_model_compiles(kind: str) -> None:
    """One graph, also the second time: nothing is kept from one call to the next."""
    model = made("llama", kind)
    secateur.accelerate(model, force=True)
    expected = logits_of(model)
    torch._dynamo.reset()
    run = torch.compile(model.forward, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            assert torch.equal(run(input_ids=IDS, use_cache=False).logits, expected)


def test_generation_is_that_of_the_plain_model() -> None:
    model = made("llama", "dense")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(IDS, **options)
    secateur.accelerate(model, force=True)
    assert torch.equal(model.generate(IDS, **options), expected)


def test_to_dense_undoes_fusing_too() -> None:
    model = pruned("qwen2")
    before, logits = state_of(model), logits_of(model)
    secateur.accelerate(model, force=True)
    to_dense(model)
    assert_as_before(model, before, logits)


@pytest.mark.parametrize("kind", ["pruned", "sparse24_low_rank"])
def test_an_accelerated_model_is_cast_back_before_it_is_undone(kind: str) -> None:
    model = made("llama", kind)
    done = secateur.accelerate(model, force=True)
    logits = logits_of(model.to(torch.float32))
    with pytest.raises(SecateurError, match="is in float32: cast the model back first"):
        done.undo()
    assert torch.equal(logits_of(model), logits), "nothing was changed"
    model.to(BF16)
    before = made("llama", kind).state_dict()
    done.undo()
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_copy_stands_alone() -> None:
    model = made("llama", "sparse24")
    before, logits = state_of(model), logits_of(model)
    done = secateur.accelerate(model, force=True)
    fast = logits_of(model)
    twin = copy.deepcopy(model)
    done.undo()
    assert torch.equal(logits_of(twin), fast)
    assert set(unfuse(twin)) == {
        *(f"model.layers.{b}.self_attn.{name}" for b in range(2) for name in QKV),
        *(f"model.layers.{b}.mlp" for b in range(2)),
    }
    assert_as_before(twin, before, logits)


# Saving.


@pytest.mark.parametrize("kind", ["dense", "pruned", "sparse24"])
def test_a_fused_model_is_not_saved(kind: str, tmp_path: Path) -> None:
    model = made("llama", kind)
    before, logits = state_of(model), logits_of(model)
    had_config = hasattr(model.config, "quantization_config")
    done = secateur.accelerate(model, force=True)
    with pytest.raises(SecateurError, match=r"fused layers to save, but .*q_proj and 3 more are"):
        model.save_pretrained(tmp_path / "one")
    assert not list((tmp_path / "one").glob("*.safetensors"))
    done.undo()
    assert_as_before(model, before, logits)
    assert hasattr(model.config, "quantization_config") == had_config
    assert_same(model, loaded(saved(model, tmp_path / "two")))
    assert ("quantization_config" in stored_config(tmp_path / "two")) == had_config


def test_layers_that_are_not_fused_are_saved_as_a_compact_checkpoint(tmp_path: Path) -> None:
    model = pruned("gpt2")
    done = secateur.accelerate(model, force=True, fuse=False)
    again = loaded(saved(model, tmp_path / "one"))
    assert_same(model, again)
    assert len(compressed_modules(again)) == 8
    done.undo()
    folder = saved(model, tmp_path / "two")
    assert "quantization_config" not in stored_config(folder)
    assert_same(model, loaded(folder))


def test_a_loaded_compact_model_comes_back(tmp_path: Path) -> None:
    model = loaded(saved(compressed("mistral"), tmp_path / "one"))
    before, logits = state_of(model), logits_of(model)
    done = secateur.accelerate(model, force=True)
    done.undo()
    assert_as_before(model, before, logits)
    assert_same(model, loaded(saved(model, tmp_path / "two")))


# What it says.


def test_rows_and_table() -> None:
    done = secateur.accelerate(pruned("llama"), force=True, batch_sizes=(1, 16))
    row = done.rows[0]
    plain = done.to_plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain[0] == {
        "names": [f"{ATTENTION}.{name}" for name in QKV],
        "shape": [64, 32],
        "form": "2:4",
        "fused": "side by side",
        "kernels": [{"tokens": m, "kernel": "reference"} for m in (1, 16)],
        "reason": "forced; reference backend, no speed-up claimed",
        "bytes_before": 64 * 32 * 2,
        "bytes_after": 64 * 64 * 1152 // 1024,
    }
    assert row.shape == (64, 32)
    text = str(done)
    assert text.splitlines()[0].startswith("Layers on cpu, policy memory: 36.9 kB -> 46.1 kB (ref")
    cells = [" ".join(str(cell) for cell in column.cells) for column in done.table().columns]
    assert "model.layers.*.self_attn: q_proj, k_proj, v_proj (2 times)" in cells[0]
    assert cells[2] == "2:4,\nside by side 2:4 2:4,\nsilu_and_mul 2:4"
    assert cells[4] == "1 1 1 1"
    reason = "reference; forced; reference backend, no speed-up claimed"
    assert done.reasons() == (reason,), "once for all layers and both numbers of tokens"
    assert text.splitlines()[-1] == f"1: {reason}"
    assert done.table().row_count == 4, "blocks that are alike stand together"
    assert max(map(len, text.splitlines())) <= 80
    assert " how" in text.splitlines()[3]


def test_kernels_that_differ_by_tokens_are_listed() -> None:
    row = LayerRow(("a.b",), (4, 8), "2:4", "", ((1, "cuda"), (64, "unpack")), "why", 64, 64)
    done = Acceleration((row,), "cpu", "strict")
    text = str(done)
    assert text.startswith("Layers on cpu, policy strict: 64 B -> 64 B\n")
    assert " a: b " in text
    assert "1: 1 tokens: cuda, 64 tokens: unpack; why" in text


def test_no_column_is_lost_on_80_columns() -> None:
    names = tuple(f"model.layers.31.self_attn.{name}" for name in QKV)
    kernels = ((1, "cuda skinny"), (16, "triton"))
    row = LayerRow(
        names, (14336, 14336), "low-rank", "silu_and_mul", kernels, "w" * 60, 10**9, 10**9 // 2
    )
    lines = str(Acceleration((row,), "NVIDIA H100", "memory")).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["layers", "shape", "form", "bytes", "how"]
    assert lines[4].split()[-1] == "1"
    assert "model.layers.31.self_attn:" in lines[4]


def test_bytes_of_factors_add_up() -> None:
    done = secateur.accelerate(made("llama", "low_rank"), force=True)
    shapes = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]
    expected = 2 * sum(2 * RANK * (rows + columns) for rows, columns in shapes)
    assert done.bytes_before == done.bytes_after == expected


# What it refuses.


def test_arguments_that_do_not_fit() -> None:
    model = pruned("llama")
    with pytest.raises(SecateurError, match="expected policy memory or strict, got 'fast'"):
        secateur.accelerate(model, policy="fast")  # type: ignore[arg-type]
    for sizes in ((), (0,), (1.5,)):
        with pytest.raises(SecateurError, match="expected batch sizes of at least 1, got "):
            secateur.accelerate(model, batch_sizes=sizes)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match=r"evaluation mode: call model.eval\(\) first"):
        secateur.accelerate(model.train())
    with pytest.raises(SecateurError, match="expected a model on one device, got one on meta"):
        secateur.accelerate(pruned("llama").to("meta"))


def test_once_is_enough() -> None:
    model = pruned("llama")
    done = secateur.accelerate(model, force=True)
    with pytest.raises(SecateurError, match=r"without fused layers to accelerate, but .* undo"):
        secateur.accelerate(model)
    done.undo()
    with pytest.raises(SecateurError, match="it was undone before"):
        done.undo()
    secateur.accelerate(model, force=True)


def test_a_failure_changes_the_model_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: nn.Module, hint: str) -> None:
        assert fused_modules(model)
        raise SecateurError("no")

    model = pruned("llama")
    before, logits = state_of(model), logits_of(model)
    monkeypatch.setattr(accelerate_module, "run_probe", fail)
    with pytest.raises(SecateurError, match="no"):
        secateur.accelerate(model, force=True)
    assert_as_before(model, before, logits)
    assert "hf_quantizer" not in vars(model)


def test_a_model_that_cannot_be_run_on_tokens() -> None:
    model = pruned("llama")
    model.forward = lambda **_: (_ for _ in ()).throw(ValueError("images"))  # type: ignore[method-assign]
    with pytest.raises(SecateurError, match=r"could not run .* tokens \(images\); fuse=False"):
        secateur.accelerate(model, force=True)
    secateur.accelerate(model, force=True, fuse=False)


def test_a_layer_that_is_needed_for_its_weight_changes_the_model_back() -> None:
    model = taking_a_weight()
    before, logits = state_of(model), logits_of(model)
    with pytest.raises(SecateurError, match=r"could not run Llama.*; its layers were replaced"):
        secateur.accelerate(model, force=True)
    assert_as_before(model, before, logits)


def test_layers_with_hooks_are_left_alone() -> None:
    model = pruned("llama")
    model.get_submodule(f"{ATTENTION}.k_proj").register_forward_hook(lambda *_: None)
    model.get_submodule(MLP).register_forward_hook(lambda *_: None)
    found = ways(secateur.accelerate(model, force=True))
    assert found[("q_proj", "v_proj")] == "side by side"
    assert found[GATE_UP] == "side by side"
    assert not any("k_proj" in names for names in found)


def test_layers_without_finite_results_are_not_fused() -> None:
    model = pruned("llama")
    norm = model.get_parameter("model.layers.0.input_layernorm.weight")
    nn.init.constant_(norm, float("inf"))
    found = ways(secateur.accelerate(model, force=True))
    assert {found[(name,)] for name in QKV} == {""}


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_model_without_some_parts(part: str) -> None:
    model = in_dtype(tiny_model("llama", 3), BF16)
    stage = {"stage": "drop_blocks", "granularity": part, "blocks": [0]}
    compress_with_report(model, {"stages": [stage]}, checkpoint_format="compact")
    before, logits = state_of(model), logits_of(model)
    done = secateur.accelerate(model, force=True)
    assert len(done.rows) == 3 * 4 - 2
    assert_near(logits_of(model), logits)
    done.undo()
    assert_as_before(model, before, logits)


def test_another_quantization_is_refused() -> None:
    model = pruned("llama")
    model.hf_quantizer = object()
    with pytest.raises(SecateurError, match="is quantised by another method"):
        secateur.accelerate(model, force=True)
    assert mark_compressed(pruned("llama")) == []
