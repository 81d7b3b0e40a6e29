"""One path over many kinds of blocks, a tiny model each, that `families.py` does not have."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, gemma4, model_from
from streaming_same import require_same
from thoroughness import most_telling
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV4Config,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GlmMoeDsaConfig,
    JambaConfig,
    Lfm2Config,
    LongcatFlashConfig,
    MambaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    SiglipVisionConfig,
    ZayaConfig,
)
from word_tokenizer import word_tokenizer

from secateur import SecateurError, compress, compress_streaming
from secateur.calibration.inputs import BlockInputs, capture_inputs
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.inventory import take_inventory
from secateur.models.replay import hidden_of
from secateur.models.swap import pack_layers
from secateur.models.trace import trace_blocks
from secateur.plan.measure import measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress
from secateur.search.suffix import output_forms
from secateur.stages.prune_reconstruct import block_samples

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LATENT: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 8,
}


def gemma3_that_sees() -> PreTrainedConfig:
    """A vision tower of as many layers, of the same name in files that all have another prefix."""
    text = Gemma3TextConfig(
        intermediate_size=64, num_hidden_layers=2, sliding_window=8, **SMALL, **HEADS
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=100
    )


def nemotron_h() -> PreTrainedConfig:
    """One mixer a block, of four kinds; its files call blocks by another name than the model."""
    return NemotronHConfig(
        layers_block_type=["linear_attention", "full_attention", "moe", "mlp"],
        intermediate_size=64,
        use_mamba_kernels=False,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=16,
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        **SMALL,
        **HEADS,
    )


def mamba() -> PreTrainedConfig:
    """No attention at all, and a matrix that is multiplied without a call."""
    return MambaConfig(num_hidden_layers=2, state_size=8, time_step_rank=4, **SMALL)


def jamba() -> PreTrainedConfig:
    """Every second mixer is Mamba's, with a bias for time steps that is large beside them."""
    return JambaConfig(
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        mamba_d_state=8,
        mamba_dt_rank=4,
        **SMALL,
    )


def qwen3_next() -> PreTrainedConfig:
    """Linear attention in all blocks but the last; experts beside a shared one."""
    return Qwen3NextConfig(
        num_hidden_layers=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        **SMALL,
        **HEADS,
    )


def deepseek_v3() -> PreTrainedConfig:
    """Latent attention; a dense block, then experts with a bias for routing alone."""
    return DeepseekV3Config(
        num_hidden_layers=2,
        intermediate_size=64,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        **SMALL,
        **LATENT,
    )


def longcat_flash() -> PreTrainedConfig:
    """Two attentions and two MLPs a block beside experts, some of which hand tokens on."""
    return LongcatFlashConfig(
        num_layers=2,
        ffn_hidden_size=64,
        expert_ffn_hidden_size=32,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
        **SMALL,
        **LATENT,
    )


def deepseek_v4() -> PreTrainedConfig:
    """Four streams of hidden states, and a projection by groups of heads."""
    return DeepseekV4Config(
        num_hidden_layers=2,
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention"],
        mlp_layer_types=["hash_moe", "moe"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        q_lora_rank=16,
        o_lora_rank=16,
        o_groups=2,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        **SMALL,
    )


def glm_moe_dsa(*indexers: str) -> PreTrainedConfig:
    """Blocks are given the tokens that the one before chose, and may choose themselves."""
    return GlmMoeDsaConfig(
        num_hidden_layers=2,
        indexer_types=list(indexers),
        mlp_layer_types=["dense", "dense"],
        intermediate_size=64,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        n_routed_experts=4,
        moe_intermediate_size=32,
        num_experts_per_tok=2,
        **SMALL,
        **LATENT,
    )


def lfm2() -> PreTrainedConfig:
    """Gated short convolutions in every second block."""
    return Lfm2Config(
        num_hidden_layers=2,
        layer_types=["conv", "full_attention"],
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        **SMALL,
    )


@dataclass(frozen=True)
class Kind:
    config: Callable[[], PreTrainedConfig]
    num_blocks: int
    untouched: frozenset[str]
    """What of two dimensions or more in its blocks stays, `*` for a block's number."""


def kind(config: Callable[[], PreTrainedConfig], num_blocks: int, *untouched: str) -> Kind:
    return Kind(config, num_blocks, frozenset(untouched))


KINDS = {
    "gemma4": kind(gemma4, 4),
    "gemma3_that_sees": kind(gemma3_that_sees, 2),
    "nemotron_h": kind(nemotron_h, 4, "mixer.conv1d.weight", "mixer.gate.weight"),
    "mamba": kind(mamba, 2, "mixer.A_log", "mixer.conv1d.weight", "mixer.dt_proj.weight"),
    "jamba": kind(
        jamba,
        4,
        "mamba.A_log",
        "mamba.conv1d.weight",
        "mamba.dt_proj.weight",
        "feed_forward.router.weight",
    ),
    "qwen3_next": kind(
        qwen3_next,
        4,
        "linear_attn.conv1d.weight",
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
    ),
    "deepseek_v3": kind(deepseek_v3, 2, "mlp.gate.weight"),
    "deepseek_v4": kind(
        deepseek_v4,
        2,
        "self_attn.compressor.position_bias",
        "self_attn.compressor.indexer.position_bias",
        "self_attn.compressor.indexer.scorer.weights_proj.weight",
        "mlp.gate.weight",
        "attn_hc.fn",
        "ffn_hc.fn",
    ),
    "glm_moe_dsa": kind(
        lambda: glm_moe_dsa("full", "full"), 2, "self_attn.indexer.weights_proj.weight"
    ),
    "longcat_flash": kind(longcat_flash, 2, "mlp.router.classifier.weight"),
    "lfm2": kind(lfm2, 2, "conv.conv.weight"),
}
EXPERTS = r"re:.*\.experts\.\d+\.\w+$"
FACTORS = {"stage": "factor", "method": "svd-whitened", "rank": 2}
WANDA: dict[str, Any] = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}


def some_ids(rows: int = 6, length: int = 24) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(0))


def entered(model: PreTrainedModel, blocks: BlockList, ids: Tensor) -> BlockInputs:
    """In two batches, of four samples and of two."""
    trace = trace_blocks(model, blocks, {}, ids[:1])
    tokens = CalibrationTokens(tuple(ids), "")
    inputs = capture_inputs(model, blocks, trace, tokens, 4 * ids.shape[1], torch.device("cpu"))
    assert inputs.batch_sizes() == [4, 2]
    return inputs


def outputs_of_blocks(model: PreTrainedModel, blocks: BlockList, ids: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: found.append(hidden_of(output).clone()))
        for block in blocks.modules
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_blocks_are_found_and_nothing_in_them_is_left_out(name: str) -> None:
    inventory = take_inventory(model_from(KINDS[name].config()))
    assert len(inventory.blocks) == KINDS[name].num_blocks
    inside = re.compile(rf"{re.escape(inventory.blocks.name)}\.\d+\.(.+)")
    left = {
        found[1]
        for entry in inventory.unmatched
        if len(entry.shape) > 1 and (found := inside.fullmatch(entry.name))
    }
    assert left == KINDS[name].untouched


@pytest.mark.parametrize("together", [4, 1])
@pytest.mark.parametrize("name", KINDS)
def test_blocks_alone_give_what_they_give_in_the_model(name: str, together: int) -> None:
    """Also for a few samples of a batch, and for samples of several batches in any order."""
    model = model_from(KINDS[name].config())
    blocks, ids = find_blocks(model), some_ids()
    expected = outputs_of_blocks(model, blocks, ids)
    inputs = entered(model, blocks, ids)
    for index, block in enumerate(blocks.modules):
        with torch.no_grad():
            mixed = block_samples(inputs, index).run(block, [5, 1, 4])
        torch.testing.assert_close(mixed, expected[index][[5, 1, 4]], rtol=1e-4, atol=1e-4)
        inputs.pass_through(block, index, [together] * len(inputs))
        torch.testing.assert_close(
            torch.cat(list(inputs.hidden)), expected[index], rtol=1e-4, atol=1e-4
        )


def test_what_a_changed_block_leaves_takes_the_place_of_what_it_left_before() -> None:
    model = model_from(gemma4())
    blocks, ids = find_blocks(model), some_ids()
    inputs = entered(model, blocks, ids)
    for index, block in enumerate(blocks.modules):
        inputs.run_block(block, index)
        for name, parameter in block.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data *= -0.5
        inputs.pass_through(block, index, inputs.batch_sizes())
    expected = outputs_of_blocks(model, blocks, ids)[-1]
    torch.testing.assert_close(torch.cat(list(inputs.hidden)), expected, rtol=1e-4, atol=1e-4)


def test_batches_that_were_halved_go_on_with_what_earlier_blocks_left() -> None:
    model = model_from(gemma4())
    blocks, ids = find_blocks(model), some_ids()
    expected = outputs_of_blocks(model, blocks, ids)
    inputs = entered(model, blocks, ids)
    for index, block in enumerate(blocks.modules):
        inputs.pass_through(block, index, inputs.batch_sizes())
        if index == 1:
            inputs = inputs.halved()
    assert inputs.batch_sizes() == [2, 2, 1, 1]
    torch.testing.assert_close(torch.cat(list(inputs.hidden)), expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    most_telling(
        list(KINDS),
        ["gemma4", "nemotron_h", "mamba", "qwen3_next", "deepseek_v4", "longcat_flash"],
    ),
)
def test_compact_in_memory_is_compact_streamed(name: str, tmp_path: Path) -> None:
    model_from(KINDS[name].config()).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    require_same(
        tmp_path / "model", WANDA, tmp_path, calibration=some_ids(), checkpoint_format="compact"
    )


@pytest.mark.parametrize(
    "factors", most_telling([False, True], [False]), ids=lambda it: "factors" if it else "2:4"
)
@pytest.mark.parametrize("name", KINDS)
def test_reloaded_in_16_bit_they_give_the_very_logits(
    name: str, factors: bool, tmp_path: Path
) -> None:
    # Loading gives each tensor the dtype that the family wants beside 16-bit weights.
    dense = model_from(KINDS[name].config()).bfloat16()
    dense.save_pretrained(tmp_path / "dense")
    model = type(dense).from_pretrained(tmp_path / "dense")
    sites = take_inventory(model).all_sites
    left_out = [s.name for s in sites if s.expert is not None or type(s.module) is not nn.Linear]
    recipe = {"stages": [FACTORS | {"ignore": left_out}]} if factors else WANDA
    compress(
        model,
        recipe,
        calibration=some_ids(),
        output=tmp_path / "out",
        checkpoint_format="compact",
    )
    pack_layers(model)
    reloaded = type(dense).from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model(input_ids=some_ids(), use_cache=False).logits
        assert torch.equal(reloaded(input_ids=some_ids(), use_cache=False).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuning_of_blocks_that_share_keys_and_values_lowers_their_errors(
    dtype: torch.dtype,
) -> None:
    model = model_from(gemma4())
    dense = outputs_of_blocks(model, find_blocks(model), some_ids())[-1]
    errors = {}
    for method in ("rgs", "wanda++"):
        pruned = model_from(gemma4()).to(dtype)
        recipe = {"stages": [{"stage": "prune", "method": method, "pattern": "2:4"}]}
        compress(pruned, recipe, calibration=some_ids())
        output = outputs_of_blocks(pruned.float(), find_blocks(pruned), some_ids())[-1]
        errors[method] = float((output - dense).norm())
    assert errors["wanda++"] < errors["rgs"]


def test_what_blocks_share_keeps_a_search_from_entering_in_the_middle() -> None:
    model = model_from(gemma4())
    assert output_forms(model, find_blocks(model), some_ids()) is None


def test_what_blocks_share_keeps_a_plan_from_being_made() -> None:
    tokens, workload = CalibrationTokens(tuple(some_ids()), ""), Workload(prefill_length=8)
    with pytest.raises(SecateurError, match="leave keys and values for later ones"):
        measure_table(model_from(gemma4()), tokens, workload, PlanOptions(), SilentProgress())


def test_several_streams_of_hidden_states_are_refused(tmp_path: Path) -> None:
    config = Gemma3nTextConfig(
        intermediate_size=64,
        num_hidden_layers=2,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=None,
        laurel_rank=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        **SMALL,
        **HEADS,
    )
    model = model_from(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        SecateurError, match=r"samples first, got \[4, 6, 24, 32\]; blocks that take"
    ):
        compress(model, WANDA, calibration=some_ids(), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def zaya() -> PreTrainedConfig:
    """Routers add what the router of the block before had in mind."""
    return ZayaConfig(
        num_hidden_layers=2,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=1,
        **SMALL,
        **HEADS,
    )


@pytest.mark.parametrize("config", [glm_moe_dsa("full", "shared"), zaya()], ids=["glm", "zaya"])
def test_blocks_that_need_more_of_earlier_ones_are_refused(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    model = model_from(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refusal = r"model\.layers\.1 needs more than hidden states of the block before it"
    with pytest.raises(SecateurError, match=refusal):
        compress(model, WANDA, calibration=some_ids(), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(SecateurError, match=refusal):
        compress_streaming(
            tmp_path / "model", WANDA, calibration=some_ids(), output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_no_factors_stand_for_what_is_no_linear_layer() -> None:
    stage = {"stage": "factor", "method": "svd", "rank": 2, "ignore": [EXPERTS]}
    with pytest.raises(SecateurError, match=r"o_a_proj is a DeepseekV4GroupedLinear, which does"):
        compress(model_from(deepseek_v4()), {"stages": [stage]})
    stage["ignore"] = [EXPERTS, "DeepseekV4GroupedLinear"]
    compress(model_from(deepseek_v4()), {"stages": [stage]})
