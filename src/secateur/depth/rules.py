"""What configurations say about single blocks, as tables: the rules that `config.py` follows.

Gathered from the configuration classes of transformers and from remote code in wide use. A field
that a configuration does not have is passed over, so one table serves every family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]
"""The attributes of a configuration under their real names."""

COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_blocks",
    "layers",
    "decoder_layers",
)
"""Names of the number of blocks; some configurations have two of them."""

PATTERN_STRING = "hybrid_override_pattern"
"""Nemotron-H: a string, one character a block."""

PER_BLOCK_LISTS = (
    # What kind of block it is.
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    PATTERN_STRING,
    "hybrid_layer_pattern",
    "attention_layers",  # GPT-Neo: derived from attention_types
    "attn_layers",
    "attn_types",
    "attn_type_list",
    "block_configs",
    "indexer_types",
    "kv_sharing_modes",
    # Positions and windows.
    "no_rope_layers",
    "layer_rope_theta",
    "rope_theta",
    "partial_rotary_factors",
    "sliding_window",
    "sliding_windows",
    "attention_window",
    # Widths.
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_query_heads",
    "num_kv_heads",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "ffn_multipliers",
    # Experts and activations.
    "moe_layer_freq",
    "moe_topk",
    "num_experts",
    "activation_sparsity_pattern",
    "compress_ratios",
    "swiglu_limits",
    "swiglu_limits_shared",
)
"""One entry a block. Most of them may also be one number for all blocks, which stays."""

INDEX_LISTS = (
    "mlp_only_layers",
    "moe_layers",
    "moe_layers_idx",
    "moe_layers_enum",  # Step-3: a string, "4,5,6"
    "cross_attention_layers",
    "full_attn_idxs",
    "attn_layer_indices",
    "hybrid_layer_ids",
    "local_layer_ids",
    "ple_layer_ids",
    "rope_scaling_layers",
)
"""Indices of the blocks that are special in some way."""

REFERENCE_LISTS = ("kv_source_layers",)
"""One entry a block: the index of another block whose result it uses."""

FIRST_ENTRIES = {"indexer_types": "full"}
"""Lists whose other entries use the result of the nearest earlier block with this one."""

OVERRIDES = ("per_layer_config",)
"""Block index -> values that differ in that block."""

PREFIX_COUNTS = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
)
"""The rule changes at this index: so many blocks come before it."""

LAST_INDICES = ("moe_layer_end_index",)
"""The last block to which a rule applies."""

DEPTH_SCALED = ("scale_depth",)
"""MiniCPM: residual branches are multiplied by this over the root of the number of blocks."""

NEXT_TOKEN_LAYERS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
)
"""Numbers of extra layers after the last block, for multi-token prediction."""

CYCLES = ("block_types",)
"""Fields that hold one period of kinds, repeated over the blocks."""

SPARSE_STEP = "decoder_sparse_step"
DENSE_LAYERS = "mlp_only_layers"
"""Qwen's mixtures of experts: block i has experts if step divides i + 1 and i is not listed."""

ATTENTION_TYPES = "attention_types"
"""GPT-Neo: pairs of a list of types and how often it is repeated."""

REFUSED = {
    "num_kv_shared_layers": (
        "the last blocks use the keys and values of earlier ones, which may not be there any more"
    ),
    "hidden_size_per_layer_input": (
        "weights outside the blocks hold one slice for each block, and they stay as they are"
    ),
    "is_encoder_decoder": "only decoder-only language models can have blocks taken out",
}
"""Fields that, if set to anything but zero, keep every block where it is, and why."""


@dataclass(frozen=True)
class PhaseRule:
    """A block's kind follows from its index, so taking blocks out changes the kind of later ones.

    Where one of `lists` says the kind of every block explicitly, that list rules and the field is
    left for information only.
    """

    field: str
    kind: Callable[[Fields, int], object]
    """Configuration and block index -> the kind, comparable."""
    lists: tuple[str, ...] = ()

    def period(self, fields: Fields) -> int:
        """After how many blocks the kinds repeat; 0 where the field is absent, empty or a list."""
        value = fields.get(self.field)
        if isinstance(value, bool) or value is None:
            return 0
        return len(value) if self.field in CYCLES or isinstance(value, str) else _integer(value)


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _every(field: str, offset: int) -> Callable[[Fields, int], object]:
    """Every n-th block is special, n in `field`; `offset` 1 where counting starts at 1."""
    return lambda fields, index: (index + offset) % fields[field] == 0


def _every_from(field: str, offset_field: str) -> Callable[[Fields, int], object]:
    return lambda fields, index: index % fields[field] == fields.get(offset_field, 0)


def _expert_frequency(fields: Fields, index: int) -> object:
    """DeepSeek's remote code: dense blocks first, then experts in every n-th."""
    first = _integer(fields.get("first_k_dense_replace"))
    return index >= first and index % fields["moe_layer_freq"] == 0


def _expert_interval(fields: Fields, index: int) -> object:
    """ERNIE: experts in every n-th block between a first and a last one."""
    first = _integer(fields.get("moe_layer_start_index"))
    last = fields.get("moe_layer_end_index")
    is_inside = first <= index and (not isinstance(last, int) or last < 0 or index <= last)
    return is_inside and (index + 1) % fields["moe_layer_interval"] == 0


def _cycle(field: str) -> Callable[[Fields, int], object]:
    return lambda fields, index: fields[field][index % len(fields[field])]


def _window_pattern(field: str) -> Callable[[Fields, int], object]:
    """A number (every n-th block sees everything) or, in EXAONE, a string such as `LLLG`."""

    def kind(fields: Fields, index: int) -> object:
        is_string = isinstance(fields[field], str)
        return (_cycle(field) if is_string else _every(field, 1))(fields, index)

    return kind


def _every_nth(field: str, *lists: str, offset: int = 1) -> PhaseRule:
    return PhaseRule(field, _every(field, offset), lists)


PHASE_RULES = (
    PhaseRule(
        "sliding_window_pattern", _window_pattern("sliding_window_pattern"), ("layer_types",)
    ),
    _every_nth("_sliding_window_pattern", "layer_types"),
    _every_nth("full_attention_interval", "layer_types"),
    _every_nth("global_attn_every_n_layers", "layer_types"),
    _every_nth("layer_group_size", "layer_types"),
    PhaseRule("block_types", _cycle("block_types")),
    PhaseRule(
        "attn_layer_period",
        _every_from("attn_layer_period", "attn_layer_offset"),
        ("layers_block_type", "layer_types"),
    ),
    PhaseRule("expert_layer_period", _every_from("expert_layer_period", "expert_layer_offset")),
    _every_nth("no_rope_layer_interval", "no_rope_layers"),
    _every_nth("interleave_moe_layer_step", "moe_layers"),
    PhaseRule("moe_layer_freq", _expert_frequency, ("mlp_layer_types",)),
    PhaseRule("moe_layer_interval", _expert_interval, ("mlp_layer_types",)),
    _every_nth(SPARSE_STEP, "mlp_layer_types"),
    _every_nth("n_layers_per_attn_res_block", offset=0),
    _every_nth("cross_layer_interval", offset=0),
)
