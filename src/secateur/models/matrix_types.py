"""What a matrix does in its block, in the terms of the literature, for every family."""

from typing import Literal

from secateur.models.sites import WeightSite

MatrixType = Literal["q", "k", "v", "qkv", "o", "mlp_in", "mlp_up", "mlp_out"]

# Names of the field's modelling code.
_ATTENTION: dict[str, MatrixType] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "c_attn": "qkv",
    "o_proj": "o",
    "out_proj": "o",
    "dense": "o",
    "c_proj": "o",
    "wq": "q",
    "wk": "k",
    "wv": "v",
    "wo": "o",
    "query": "q",
    "key": "k",
    "value": "v",
}
_MLP: dict[str, MatrixType] = {
    "gate_proj": "mlp_in",
    "gate_up_proj": "mlp_in",
    "up_proj": "mlp_up",
    "down_proj": "mlp_out",
    "w1": "mlp_in",
    "w3": "mlp_up",
    "w2": "mlp_out",
    "fc1": "mlp_in",
    "fc2": "mlp_out",
    "fc_in": "mlp_in",
    "fc_out": "mlp_out",
    "c_fc": "mlp_in",
    "c_proj": "mlp_out",
    "dense_h_to_4h": "mlp_in",
    "dense_4h_to_h": "mlp_out",
}
_ATTENTION_ENDINGS = ("attn", "attention")


def in_attention(name: str) -> bool:
    """Whether what has this dotted name is in the attention of its block, for every family."""
    return any(part.endswith(_ATTENTION_ENDINGS) for part in name.split("."))


def matrix_type(site: WeightSite) -> MatrixType | None:
    """The type of a matrix by its name; None where it has none, as experts have.

    `qkv` is a matrix that holds all three. `mlp_in` is the matrix whose output goes through the
    activation (gate_proj where there is a gate, or gate and up in one), `mlp_up` the ungated one
    beside it, `mlp_out` the one that leads back.
    """
    return None if site.is_expert else _type_of(site.name)


def is_fed(site_name: str) -> bool:
    """Whether other matrices of the same attention or MLP make what enters this one."""
    return ".experts." not in site_name and _type_of(site_name) in ("o", "mlp_out")


def _type_of(site_name: str) -> MatrixType | None:
    path, _, leaf = site_name.rpartition(".")
    return (_ATTENTION if in_attention(path) else _MLP).get(leaf)
