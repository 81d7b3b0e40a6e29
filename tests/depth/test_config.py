import copy
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    BambaConfig,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
    T5Config,
    ZambaConfig,
)

from secateur.depth.config import drop_from_config, kept_blocks
from secateur.errors import SecateurError

NUM_BLOCKS = 6


def namespace(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=NUM_BLOCKS, **fields)


def reloaded(config: PreTrainedConfig) -> PreTrainedConfig:
    return type(config).from_dict(config.to_dict())


def expert_blocks(config: Any) -> list[bool]:
    """Qwen's own rule, as its model applies it."""
    return [
        index not in config.mlp_only_layers and (index + 1) % config.decoder_sparse_step == 0
        for index in range(config.num_hidden_layers)
    ]


# Indices.


def test_kept_blocks() -> None:
    assert kept_blocks([4, 0], 5) == (1, 2, 3)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([6], r"from 0 to 5, got \[6\]"),
        ([-1], r"from 0 to 5, got \[-1\]"),
        ([1, 1], r"each block to drop once, got \[1, 1\]"),
        (range(6), "keep a block, all 6 would be dropped"),
    ],
)
def test_refuses_wrong_indices(dropped: Any, message: str) -> None:
    config = namespace()
    with pytest.raises(SecateurError, match=message):
        drop_from_config(config, dropped, NUM_BLOCKS)
    assert config == namespace()


def test_nothing_dropped_changes_nothing() -> None:
    config = namespace(num_kv_shared_layers=2, num_mtp_layers=1)
    assert drop_from_config(config, [], NUM_BLOCKS) == ()
    assert config.num_hidden_layers == NUM_BLOCKS


# Real configurations: what comes out is read back.


def test_refuses_a_configuration_without_the_count() -> None:
    with pytest.raises(SecateurError, match=r"whose num_hidden_layers or n_layer .* is 6; Simple"):
        drop_from_config(SimpleNamespace(num_hidden_layers=5), [1], NUM_BLOCKS)


def test_gpt_neo_attention_types() -> None:
    config = GPTNeoConfig(num_layers=6, attention_types=[[["global", "local"], 3]])
    drop_from_config(config, [1], 6)
    assert reloaded(config).attention_layers == ["global", "global", "local", "global", "local"]
    assert reloaded(config).num_hidden_layers == 5


def test_qwen2_windows() -> None:
    config = Qwen2Config(
        num_hidden_layers=6, max_window_layers=3, use_sliding_window=True, sliding_window=8
    )
    drop_from_config(config, [1, 5], 6)
    assert reloaded(config).layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert reloaded(config).max_window_layers == 2


@pytest.mark.parametrize("dropped", [[1], [0, 5], [2, 3], [5], [0, 1, 2]])
@pytest.mark.parametrize(
    "fields", [{"decoder_sparse_step": 2}, {"decoder_sparse_step": 2, "mlp_only_layers": [1, 4]}]
)
def test_qwen_experts_stay_where_they_are(dropped: list[int], fields: dict[str, Any]) -> None:
    config = Qwen3MoeConfig(num_hidden_layers=6, **fields)
    before = expert_blocks(config)
    assert drop_from_config(config, dropped, 6) == ()
    assert expert_blocks(reloaded(config)) == [before[index] for index in kept_blocks(dropped, 6)]


def test_qwen_sparse_step_stays_where_it_fits() -> None:
    config = Qwen3MoeConfig(num_hidden_layers=6, decoder_sparse_step=2)
    drop_from_config(config, [2, 3], 6)
    assert (config.decoder_sparse_step, config.mlp_only_layers) == (2, [])


def test_gemma3_keeps_its_types_and_warns_of_the_pattern() -> None:
    config = Gemma3TextConfig(num_hidden_layers=6)
    (warning,) = drop_from_config(config, [1], 6)
    assert "_sliding_window_pattern = 6 now says otherwise for 1 of 5 blocks" in warning
    assert reloaded(config).layer_types == ["sliding_attention"] * 4 + ["full_attention"]


def test_deepseek_dense_blocks_and_next_token_layers() -> None:
    config = DeepseekV3Config(num_hidden_layers=6, first_k_dense_replace=3)
    (warning,) = drop_from_config(config, [0, 4], 6)
    assert "num_nextn_predict_layers is 1" in warning
    assert reloaded(config).first_k_dense_replace == 2


def test_ernie_expert_bounds() -> None:
    config = Ernie4_5_MoeConfig(
        num_hidden_layers=6, moe_layer_start_index=2, moe_layer_end_index=4, moe_layer_interval=1
    )
    drop_from_config(config, [0, 3], 6)
    assert reloaded(config).moe_layer_start_index == 1
    assert reloaded(config).moe_layer_end_index == 2


def test_llama4_experts_and_positions() -> None:
    config = Llama4TextConfig(num_hidden_layers=8, interleave_moe_layer_step=2)
    warnings = drop_from_config(config, [2], 8)
    assert reloaded(config).moe_layers == [1, 2, 4, 6]
    assert reloaded(config).no_rope_layers == [1, 1, 0, 1, 1, 1, 0]
    assert any("no_rope_layer_interval = 4" in warning for warning in warnings)


def test_smollm3_positions() -> None:
    config = SmolLM3Config(num_hidden_layers=8, pad_token_id=0)
    drop_from_config(config, [0], 8)
    assert reloaded(config).no_rope_layers == [1, 1, 0, 1, 1, 1, 0]


def test_lfm2_and_bamba_attention_blocks() -> None:
    lfm2 = Lfm2Config(num_hidden_layers=6, full_attn_idxs=[2, 5])
    drop_from_config(lfm2, [0, 2], 6)
    assert reloaded(lfm2).layer_types == ["conv", "conv", "conv", "full_attention"]
    bamba = BambaConfig(num_hidden_layers=6, attn_layer_indices=[2, 5])
    drop_from_config(bamba, [0], 6)
    assert reloaded(bamba).attn_layer_indices == [1, 4]


def test_nemotron_h_computes_its_count() -> None:
    config = NemotronHConfig(hybrid_override_pattern="M-M*E-")
    drop_from_config(config, [1, 3], 6)
    assert reloaded(config).hybrid_override_pattern == "MME-"
    assert reloaded(config).num_hidden_layers == 4


def test_zamba_list_outdoes_its_period() -> None:
    config = ZambaConfig(num_hidden_layers=12)
    types = list(config.layers_block_type)
    (warning,) = drop_from_config(config, [3], 12)
    assert "attn_layer_period" in warning
    assert reloaded(config).layers_block_type == types[:3] + types[4:]


@pytest.mark.parametrize("config_class", [JambaConfig, RecurrentGemmaConfig])
def test_hybrids_without_a_list_refuse_what_moves_the_kinds(
    config_class: type[PreTrainedConfig],
) -> None:
    config = config_class(num_hidden_layers=32)
    kinds = list(config.layers_block_type)
    with pytest.raises(SecateurError, match="neighbouring blocks"):
        drop_from_config(config, [1], 32)
    assert config.num_hidden_layers == 32
    drop_from_config(config, range(24), 32)
    assert reloaded(config).layers_block_type == kinds[24:]


def gemma4(**fields: Any) -> Gemma4TextConfig:
    return Gemma4TextConfig(num_hidden_layers=12, hidden_size_per_layer_input=0, **fields)


def test_gemma4_overrides_follow_their_blocks() -> None:
    config = gemma4()
    assert config.per_layer_config[5].head_dim == 512
    drop_from_config(config, [0, 1], 12)
    again = reloaded(config)
    assert [again.per_layer_config[index].head_dim for index in (2, 3, 4)] == [256, 512, 256]


def test_gemma4_overrides_may_all_go() -> None:
    config = gemma4(layer_types=["full_attention"] * 12, per_layer_config={0: {"head_dim": 64}})
    drop_from_config(config, [0], 12)
    assert {reloaded(config).per_layer_config[index].head_dim for index in range(11)} == {256}


def test_refuses_what_the_class_would_read_back_differently() -> None:
    """Gemma 4 makes the last block see everything, whatever the list says."""
    config = gemma4()
    before = copy.deepcopy(vars(config))
    with pytest.raises(SecateurError, match=r"layer_types was written as .* and reads back as"):
        drop_from_config(config, [11], 12)
    assert vars(config) == before


def test_refuses_what_the_class_refuses() -> None:
    class EvenConfig(LlamaConfig):
        def __post_init__(self, **kwargs: Any) -> None:
            if self.num_hidden_layers % 2:
                raise ValueError("odd number of layers")
            super().__post_init__(**kwargs)

    with pytest.raises(SecateurError, match=r"EvenConfig cannot describe blocks .*odd number"):
        drop_from_config(EvenConfig(num_hidden_layers=6), [1], 6)


def test_refuses_encoder_decoder_models() -> None:
    with pytest.raises(SecateurError, match="is_encoder_decoder is True"):
        drop_from_config(T5Config(num_layers=6), [1], 6)
