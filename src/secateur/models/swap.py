"""Replace linear layers of a model by compressed ones, and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.fuse import unfuse
from secateur.models.inventory import take_inventory
from secateur.models.sites import WeightSite, transposed_weight
from secateur.models.sublayers import removed_sublayers
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.modules.dense_linear import dense_linear
from secateur.modules.stack import REPLACED_CLASS
from secateur.modules.weight24 import PACKABLE_DTYPES, Weight24Module
from secateur_kernels.layouts import Canonical24, LowRank

CompressedLinear = LowRankLinear | Sparse24Linear | SparseLowRankLinear

# Subclasses of `nn.Linear` that compute what it does: Falcon's rounds once more before its bias.
_ALSO_LINEAR = ("FalconLinear",)


def compressed_modules(model: nn.Module) -> dict[str, CompressedLinear]:
    """The compressed layers of a model by dotted name, in the order of its modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CompressedLinear)
    }


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(N, K) of a linear layer, dense or compressed, or of GPT-2's Conv1D; None of all others."""
    if isinstance(module, nn.Linear | CompressedLinear):
        return module.out_features, module.in_features
    if (weight := transposed_weight(module)) is not None:
        columns, rows = weight.shape
        return rows, columns
    return None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a linear layer in the place of another one of the same shape.

    Layers that share the `down` of the old one go on reading it there.

    Args:
        model: changed in place.
        name: dotted name of the layer to replace: an `nn.Linear`, GPT-2's Conv1D, or a compressed
            layer.
        module: takes its place and its training mode.

    Returns:
        the layer that was there.

    Raises:
        SecateurError: there is no such layer, or the shapes differ.
    """
    parent_name, _, child_name = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        old = parent.get_submodule(child_name)
    except AttributeError:
        raise SecateurError(f"{type(model).__name__} has no layer {name}") from None
    shape, new_shape = linear_shape(old), linear_shape(module)
    if shape is None or name == "":
        raise SecateurError(f"expected a linear layer at {name or 'the root'}, found {_kind(old)}")
    if new_shape != shape:
        raise SecateurError(
            f"expected a layer {list(shape)} for {name}, got {_kind(module)} of {new_shape}"
        )
    if isinstance(module, CompressedLinear):
        setattr(module, REPLACED_CLASS, getattr(old, REPLACED_CLASS, type(old)))
    setattr(parent, child_name, module.train(old.training))
    return old


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def find_sparse24(model: nn.Module) -> list[str]:
    """Names of the dense linear layers in a model's blocks that are exactly 2:4.

    Exactly 2:4 means that no four consecutive weights of a row hold more than two that are not
    zero. Tied matrices, experts in one fused parameter and subclasses of `nn.Linear` other than
    Falcon's do not count.

    Raises:
        SecateurError: the model has no blocks.
    """
    return [name for name, site in dense_sites(model).items() if is_sparse24(site.weight)]


def dense_sites(model: nn.Module) -> dict[str, WeightSite]:
    """The dense linear layers of a model's blocks that may be replaced, by name.

    Tied matrices, experts in one fused parameter and subclasses of `nn.Linear` other than Falcon's
    do not count.

    Raises:
        SecateurError: the model has no blocks.
    """
    return {site.name: site for site in take_inventory(model).all_sites if may_be_replaced(site)}


def may_be_replaced(site: WeightSite) -> bool:
    """Whether another layer may stand for a matrix: it computes what a linear layer does."""
    kind = type(site.module)
    return site.expert is None and (_is_linear(kind) or site.stored_transposed)


def _is_linear(kind: type[nn.Module]) -> bool:
    return kind is nn.Linear or (issubclass(kind, nn.Linear) and kind.__name__ in _ALSO_LINEAR)


def is_sparse24(weight: Tensor) -> bool:
    """Whether no four consecutive weights of a row [N, K] hold more than two that are not zero."""
    rows, columns = weight.shape
    if columns % 4:
        return False
    # As bytes: torch would make eight of each.
    kept = (weight != 0).reshape(rows, columns // 4, 4).sum(dim=2, dtype=torch.uint8)
    return bool((kept <= 2).all())


def convert_sparse24(
    model: nn.Module, names: Iterable[str] | None = None, within: str = ""
) -> list[str]:
    """Make 2:4 layers, in canonical form, of dense linear layers that are exactly 2:4.

    Every weight that is not zero is kept bit for bit, in its dtype; -0.0 becomes 0.0.

    Args:
        model: changed in place, one layer at a time.
        names: dotted names of the layers; by default all that `find_sparse24` finds.
        within: dotted name of the part of the model that is looked at where there are no `names`:
            others may lack their weights.

    Returns:
        names of the layers that were converted.

    Raises:
        SecateurError: a name is no dense linear layer of a block, or its weight is not 2:4; nothing
            was changed.
    """
    sites = dense_sites(model)
    start = f"{within}." if within else ""
    if names is None:
        chosen = [n for n in sites if n.startswith(start) and is_sparse24(sites[n].weight)]
    else:
        chosen = list(dict.fromkeys(names))
        for name in chosen:
            _require_sparse24(sites.get(name), name)
    for name in chosen:
        # What is left of the dense layer goes before the next one is converted.
        _convert(model, sites.pop(name))
    return chosen


def _require_sparse24(site: WeightSite | None, name: str) -> None:
    if site is None:
        raise SecateurError(f"expected the name of a dense linear layer in a block, got {name!r}")
    if not is_sparse24(site.weight):
        raise SecateurError(
            f"{name} {list(site.shape)} is not 2:4: somewhere more than two of four consecutive "
            "weights of a row are not zero, or its columns are not divisible by 4"
        )


def _convert(model: nn.Module, site: WeightSite) -> None:
    rows, columns = site.shape
    dense = site.weight
    bias = getattr(site.module, "bias", None)
    sparse = Sparse24Linear(columns, rows, bias is not None, dtype=dense.dtype, device="meta")
    # In bf16 whatever the weight's dtype is: only the positions matter here.
    positions = Canonical24.from_dense((dense != 0).to(torch.bfloat16))
    values = dense.masked_fill(dense == 0, 0.0)[positions.keep_mask()].view(rows, columns // 2)
    sparse.weight = nn.Parameter(values, requires_grad=site.parameter.requires_grad)
    sparse.indices = positions.indices
    sparse.bias = bias
    replace_module(model, site.name, sparse)


def pack_model(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Make packed 2:4 layers of a dense model with zeros: `convert_sparse24`, then `pack_layers`.

    Raises:
        SecateurError: as `convert_sparse24`; no layer is 2:4; a weight is not bf16 or fp16.
    """
    found = list(names) if names is not None else find_sparse24(model)
    if not found:
        raise SecateurError(f"found no linear layer of {_kind(model)} that is 2:4")
    sites = dense_sites(model)
    for name in found:
        if name in sites and sites[name].weight.dtype not in PACKABLE_DTYPES:
            raise SecateurError(
                f"expected weights of dtype bfloat16 or float16 to pack, but {name} is "
                f"{str(sites[name].weight.dtype).removeprefix('torch.')}"
            )
    convert_sparse24(model, found)
    pack_layers(model)
    return found


def pack_layers(model: nn.Module) -> list[str]:
    """Put the 2:4 weights of compressed layers into the order of the kernels.

    Layers of other dtypes than bf16 and fp16 stay canonical.

    Returns:
        names of the layers that are packed now.

    Raises:
        SecateurError: a weight is corrupt; names its layer.
    """
    packed = []
    for name, module in _layers_24(model).items():
        if module.weight is not None and module.weight.dtype not in PACKABLE_DTYPES:
            continue
        try:
            module.pack()
        except SecateurError as error:
            raise SecateurError(f"{name}: {error}") from None
        packed.append(name)
    return packed


def unpack_layers(model: nn.Module) -> list[str]:
    """Put the 2:4 weights of compressed layers into canonical form: to train or to inspect them.

    Returns:
        names of the 2:4 layers.
    """
    layers = _layers_24(model)
    for module in layers.values():
        module.unpack()
    return list(layers)


def _layers_24(model: nn.Module) -> dict[str, Weight24Module]:
    return {
        name: module
        for name, module in compressed_modules(model).items()
        if isinstance(module, Weight24Module)
    }


def to_dense(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Replace compressed layers by the dense ones that they stand for, biases shared.

    2:4 weights come back bit for bit; factors are multiplied and rounded once.

    Args:
        model: changed in place. Without `names`, layers that were fused stand alone again first.
        names: dotted names of compressed layers; by default all of them.

    Returns:
        names of the layers that were replaced.

    Raises:
        SecateurError: a layer multiplies gate and up, which a linear layer cannot; a name is none
            of a compressed layer; layers that are not named share the `down` of one that is; or,
            without `names`, the attention or MLP of a block was removed. Nothing was changed.
    """
    layers = _layers_to_replace(model, names)
    for name, module in layers.items():
        if module.activation != "none":
            raise SecateurError(f"{name} multiplies gate and up: no one dense layer stands for it")
    _require_sharers(model, layers)
    for name, module in layers.items():
        put_dense(model, name, module)
    return list(layers)


def put_dense(model: nn.Module, name: str, module: CompressedLinear) -> None:
    """Replace one compressed layer by the dense one that it stands for, as `to_dense` does.

    Layers that share its `down` go on reading it there: for callers that keep the layer.

    Args:
        model: changed in place.
        name: of the layer.
        module: the layer.
    """
    linear = _dense_layer(module)
    replaced = getattr(module, REPLACED_CLASS, nn.Linear)
    replace_module(model, name, linear)
    if not issubclass(replaced, nn.Linear):
        replace_module(model, name, _transposed(linear, replaced))
    elif _is_linear(replaced):
        # The class adds no state, and its order of roundings comes back with it.
        linear.__class__ = replaced


def _require_sharers(model: nn.Module, layers: Mapping[str, CompressedLinear]) -> None:
    named = {id(module): name for name, module in layers.items()}
    left: dict[str, list[str]] = {}
    for name, module in compressed_modules(model).items():
        if isinstance(module, LowRankLinear) and module.shares_down and id(module) not in named:
            if leader := named.get(id(module.down_holder())):
                left.setdefault(leader, []).append(name)
    for leader, names in left.items():
        raise SecateurError(
            f"expected to replace {leader} together with the layers that share its down, but "
            f"{', '.join(names)} would stay"
        )


def _layers_to_replace(
    model: nn.Module, names: Iterable[str] | None
) -> dict[str, CompressedLinear]:
    if names is None:
        removed = list(removed_sublayers(model))
        if removed:
            raise SecateurError(f"{removed[0]} was removed: no dense layer stands for it")
        unfuse(model)
        return compressed_modules(model)
    layers = compressed_modules(model)
    chosen = list(names)
    for name in chosen:
        if name not in layers:
            some = f"such as {next(iter(layers))}, " if layers else "of which there are none, "
            raise SecateurError(f"expected the name of a compressed layer, {some}got {name!r}")
    return {name: layers[name] for name in chosen}


def dense_weight(module: Weight24Module) -> Tensor:
    """The 2:4 weight of a layer [N, K] with its zeros, of any dtype.

    Raises:
        SecateurError: an index pair is corrupt.
    """
    if module.weight is None or module.weight.dtype in PACKABLE_DTYPES:
        return module.dense_weight()
    assert module.indices is not None
    values = module.weight.detach()
    # The layout knows 16-bit values only: they lend it positions.
    kept = Canonical24(values.to(torch.bfloat16), module.indices).keep_mask()
    return values.new_zeros(kept.shape).masked_scatter_(kept, values)


def _dense_layer(module: CompressedLinear) -> nn.Linear:
    if isinstance(module, LowRankLinear) or module.is_packed:
        return module.to_linear()
    weight = dense_weight(module)
    if isinstance(module, SparseLowRankLinear):
        down, up = module.down.detach().double(), module.up.detach().double()
        product = LowRank(down, up, tuple(module.group_rows)).to_dense()
        weight = (weight.double() + product).to(weight.dtype)
    return dense_linear(weight, module.bias, module.activation)


def _transposed(linear: nn.Linear, kind: type[nn.Module]) -> nn.Module:
    """The layer as a class that stores [K, N], as GPT-2's Conv1D."""
    with torch.device("meta"):
        layer = kind(linear.out_features, linear.in_features)
    layer.weight = nn.Parameter(linear.weight.detach().T.contiguous())
    bias = linear.bias
    layer.bias = (
        nn.Parameter(linear.weight.new_zeros(linear.out_features)) if bias is None else bias
    )
    return layer
