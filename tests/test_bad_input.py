"""Whatever is wrong with the input: a message that says what, nothing written, nothing changed."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB_SIZE, model_from, tiny_model
from forked import run_python
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from secateur import prepare
from secateur.checkpoint import load
from secateur.compress import compress
from secateur.errors import OutOfSpaceError, SecateurError

WANDA: dict[str, Any] = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}
MAGNITUDE: dict[str, Any] = {
    "stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]
}


def prune(**options: Any) -> dict[str, Any]:
    return {"stages": [{"stage": "prune", "method": "wanda", **options}]}


def drop(**options: Any) -> dict[str, Any]:
    return {"stages": [{"stage": "drop_blocks", **options}]}


def some_ids(rows: int = 4, length: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=generator)


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of a hundred words, w0 to w99."""
    vocabulary = {"<unk>": 0, **{f"w{number}": number + 3 for number in range(100)}}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def text_of(num_words: int) -> str:
    return " ".join(f"w{number % 100}" for number in range(num_words))


def files_in(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().reshape(-1).view(torch.uint8)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that must not change: bits, configuration, hooks, forwards."""
    modules = dict(model.named_modules())
    config = getattr(model, "config", None)
    return {
        "bits": {
            name: None if value.is_meta else bits(value)
            for name, value in model.state_dict().items()
        },
        "identity": {name: id(value) for name, value in model.named_parameters()},
        "config": config.to_dict() if config is not None else None,
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in modules.items()
        },
        "forwards": {name for name, module in modules.items() if "forward" in vars(module)},
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    old, new = before.pop("bits"), after.pop("bits")
    assert after == before
    assert new.keys() == old.keys()
    for name, value in new.items():
        assert value is old[name] or torch.equal(value, old[name]), f"{name} was changed"


def refused(
    tmp_path: Path,
    model: Any,
    message: str,
    recipe: Any = WANDA,
    *,
    kind: type[SecateurError] = SecateurError,
    **options: Any,
) -> SecateurError:
    """Compress, and expect a SecateurError, no file and no change of the model."""
    if recipe is not MAGNITUDE:
        options.setdefault("calibration", some_ids())
    options.setdefault("output", tmp_path / "out")
    files = files_in(tmp_path)
    before = state_of(model) if isinstance(model, nn.Module) else None
    with pytest.raises(SecateurError, match=message) as caught:
        compress(model, recipe, **options)
    assert type(caught.value) is kind
    assert caught.value.exit_code == (5 if kind is OutOfSpaceError else 2)
    assert files_in(tmp_path) == files
    if before is not None:
        assert_same_state(model, before)
    return caught.value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model folder of one file, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def test_the_spoilt_models_are_good_before(folder: Path, tmp_path: Path) -> None:
    compress(folder, WANDA, calibration=some_ids(), output=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


# Weights and activations that are no numbers.

TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_that_is_not_finite(
    tmp_path: Path, name: str, bad: float, dtype: torch.dtype
) -> None:
    model = tiny_model("llama").to(dtype)
    parameter = model.get_parameter(name)
    with torch.no_grad():
        parameter.view(-1)[-3] = bad
    message = rf"{name} holds NaN or Inf in 1 of {parameter.numel()} places"
    refused(tmp_path, model, message)
    refused(tmp_path, model, message, MAGNITUDE)
    model.save_pretrained(tmp_path / "model")
    refused(tmp_path, tmp_path / "model", message)


def overflowing(block: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """What enters down_proj of a block is too large for the dtype; all weights are finite."""
    model = tiny_model("llama").to(dtype)
    with torch.no_grad():
        model.get_parameter(f"model.layers.{block}.mlp.up_proj.weight").fill_(
            6e4 if dtype == torch.float16 else 1e38
        )
    return model


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_that_overflow_name_the_matrix(
    tmp_path: Path, method: str, block: int, dtype: torch.dtype
) -> None:
    model = overflowing(block, dtype)
    name = rf"model\.layers\.{block}\.mlp\.down_proj"
    with pytest.raises(SecateurError, match=f"activations that enter {name} hold NaN or Inf"):
        compress(
            model,
            prune(method=method, pattern="2:4"),
            calibration=some_ids(),
            output=tmp_path / "out",
        )
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("block", [0, 1])
def test_model_is_left_alone_where_activations_overflow(tmp_path: Path, block: int) -> None:
    refused(tmp_path, overflowing(block), rf"model\.layers\.{block}\.mlp\.down_proj")


def test_hidden_states_that_overflow_before_the_first_block(tmp_path: Path) -> None:
    # Gemma multiplies its embeddings, each of which is finite, by the root of the width.
    model = tiny_model("gemma3")
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").fill_(1e38)
    message = r"activations that enter model\.\S+ hold NaN or Inf"
    refused(tmp_path, model, message)
    refused(tmp_path, model, message, drop(count=1))


@pytest.mark.parametrize("recipe", [WANDA, MAGNITUDE])
def test_model_whose_logits_are_not_finite(tmp_path: Path, recipe: Any) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(3e38)
    refused(tmp_path, model, "NaN or Inf", recipe)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    refused(tmp_path, model, r"model\.embed_tokens\.weight is on the meta device")
    partly = tiny_model("llama")
    partly.get_submodule("model.layers.1.mlp.up_proj").to("meta")
    refused(tmp_path, partly, r"model\.layers\.1\.mlp\.up_proj\.weight is on the meta device")


# Models that cannot be compressed.


def test_quantised_model_on_disk(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    error = refused(tmp_path, folder, r"already quantised \(gptq\)")
    assert str(folder) in str(error)
    refused(tmp_path, folder, r"already quantised \(gptq\)", MAGNITUDE)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": "fp8"},
        {"compression_config": {"quant_method": "sparseml"}},
        {"text_config": {"quantization_config": {"bits": 4}}},
    ],
)
def test_quantised_in_an_unusual_way(folder: Path, tmp_path: Path, config: Any) -> None:
    edit_json(folder / "config.json", **config)
    refused(tmp_path, folder, r"already quantised")


def test_quantised_model_object(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    refused(tmp_path, model, "LlamaForCausalLM is already quantised")


def test_model_without_blocks(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    refused(tmp_path, model, "expected a list of some decoder blocks in Sequential.* lists: none")
    other = tiny_model("llama")
    other.config.num_hidden_layers = 3
    refused(tmp_path, other, r"expected a list of 3 decoder blocks.*model\.layers \(2\)")


def test_model_without_parameters(tmp_path: Path) -> None:
    refused(tmp_path, nn.Identity(), "decoder blocks in Identity")


def test_model_without_matrices_in_its_blocks(tmp_path: Path) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
    refused(tmp_path, model, r"found 2 blocks at layers in Module, but no weight matrix")


def test_model_without_a_head(tmp_path: Path) -> None:
    model = tiny_model("llama").get_submodule("model")
    refused(tmp_path, model, "causal language model")


@pytest.mark.parametrize("model", [5, None, {}])
def test_what_is_no_model(tmp_path: Path, model: Any) -> None:
    refused(tmp_path, model, "model")


@pytest.mark.parametrize(
    "source", ["no-such-folder", "./no/such", "/no/such/folder", "a/b/c", "~/x"]
)
def test_model_that_is_not_there(tmp_path: Path, source: str) -> None:
    message = rf"expected a model folder or a Hub id `owner/name`, got {source}"
    refused(tmp_path, source, message)


def test_folder_of_another_kind_of_model(tmp_path: Path, folder: Path) -> None:
    config = {"model_type": "t5", "d_model": 32, "num_layers": 1, "num_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    error = refused(tmp_path, folder, f"expected a causal language model in {folder}, got.* t5,")
    assert len(str(error)) < 300, "without a list of all that transformers takes"
    (folder / "config.json").write_text(json.dumps({"model_type": "supernova"}))
    error = refused(tmp_path, folder, "transformers cannot load .*supernova")
    assert "pip install" not in str(error)


def test_path_into_a_folder_is_never_looked_up(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "runs" / "wanda-2of4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    message = (
        r"^runs/wanda-2of is no folder, though there is a folder runs "
        r"\(nearest: runs/wanda-2of4\); for the Hub's model of that name say which revision"
    )
    refused(tmp_path, "runs/wanda-2of", message)
    for source in ("a b/c", "owner/", "/name", "owner/na me", "-owner/name"):
        refused(tmp_path, source, "expected a model folder or a Hub id `owner/name`, got")


@pytest.mark.parametrize(
    ("source", "revision"),
    [("owner/name", None), ("runs/name", "main"), ("o-w.ner/n_a.m-e", None), ("0x/1", None)],
)
def test_hub_ids_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, revision: str | None
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)

    def gone(repository: str, **_: Any) -> None:
        raise OSError(f"no {repository}")

    monkeypatch.setattr(load, "snapshot_download", gone)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    message = f"{source} is no folder here, and cannot be had from the Hub: no {source}"
    refused(tmp_path, source, message, revision=revision)


@pytest.mark.parametrize("calibration", [None, "no-such.txt"])
def test_calibration_that_is_not_there_is_found_before_the_model_is_loaded(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, calibration: str | None
) -> None:
    monkeypatch.setattr(prepare, "load_model", lambda *_, **__: pytest.fail("loaded the model"))
    message = "calibration source no-such.txt" if calibration else r"calibration \(--calibration\)"
    refused(tmp_path, folder, message, calibration=calibration)


def test_model_that_is_a_file(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path, folder / "model.safetensors", "expected a model folder or a Hub id")


def test_options_for_loading_beside_a_loaded_model(tmp_path: Path, folder: Path) -> None:
    message = "revision and dtype say how to load a model, but one was given loaded"
    refused(tmp_path, tiny_model("llama"), message, dtype="bfloat16")
    refused(tmp_path, tiny_model("llama"), message, revision="main")
    refused(tmp_path, folder, "revision main is for Hub ids", revision="main")


def test_a_dtype_may_be_torchs(folder: Path, tmp_path: Path) -> None:
    outputs = []
    for dtype in ("bfloat16", torch.bfloat16):
        output = tmp_path / str(dtype)
        compress(folder, MAGNITUDE, output=output, dtype=dtype, max_shard_size=10_000_000)
        outputs.append((output / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dtype", ["float8", "bf16", "", "int8", torch.float64])
def test_unknown_dtype(folder: Path, tmp_path: Path, dtype: Any) -> None:
    refused(tmp_path, folder, "expected dtype one of auto, bfloat16, float16, float32", dtype=dtype)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "cpu:x", "no such device"])
def test_unknown_device(tmp_path: Path, folder: Path, device: str) -> None:
    message = f"device {device} cannot be used here"
    refused(tmp_path, tiny_model("llama"), message, device=device)
    refused(tmp_path, folder, message, MAGNITUDE, device=device)


@pytest.mark.parametrize("recipe", [WANDA, MAGNITUDE])
def test_meta_device(tmp_path: Path, recipe: Any) -> None:
    refused(tmp_path, tiny_model("llama"), "device meta cannot be used here", recipe, device="meta")


# Folders that are not whole, or not safe.


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 20, 4, 0):
        path.write_bytes(content[:length])
        error = refused(tmp_path, folder, "model.safetensors is corrupt or cut short")
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 1000,
        (2**62).to_bytes(8, "little") + b"{}" * 100,
        (40).to_bytes(8, "little") + b"not json at all, whatever the file says" + b"x" * 99,
        (2).to_bytes(8, "little") + b"{}" + b"left over",
    ],
)
def test_garbage_for_a_header(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(tmp_path, folder, "model.safetensors is corrupt or cut short")


def test_truncated_shard(sharded: Path, tmp_path: Path) -> None:
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path, sharded, f"{path.name} is corrupt or cut short")


def test_missing_shards(sharded: Path, tmp_path: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1:]
    for path in lost:
        path.unlink()
    names = ", ".join(path.name for path in lost)
    refused(tmp_path, sharded, f"lacks the shards {names}")


def test_index_that_promises_too_much(sharded: Path, tmp_path: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first = weight_map["model.norm.weight"]
    edit_json(index, weight_map={**weight_map, "model.extra.weight": first})
    message = (
        rf"{first} lacks 1 tensors that model.safetensors.index.json promises, "
        r"the first is model\.extra\.weight"
    )
    refused(tmp_path, sharded, message)


def test_shard_without_a_tensor_of_the_index(sharded: Path, tmp_path: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    refused(tmp_path, sharded, rf"{shards[1].name} lacks \d+ tensors that .* promises")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "is not in the folder itself"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "is not in the folder itself"),
        ('{"weight_map": {"a": ".."}}', "lacks the shards"),
        ('{"weight_map": {"a": 5}}', "lacks the shards 5"),
    ],
)
def test_index_that_makes_no_sense(sharded: Path, tmp_path: Path, text: str, message: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, sharded, message)


def test_tensor_that_the_model_needs_is_in_no_file(sharded: Path, tmp_path: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    lost = next(name for name in weight_map if name.endswith("0.mlp.up_proj.weight"))
    shard = weight_map[lost]
    edit_json(index, weight_map={n: file for n, file in weight_map.items() if file != shard})
    (sharded / shard).unlink()
    refused(tmp_path, sharded, r"does not hold what its config asks for: \d+ missing keys")


def test_weights_of_another_shape(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=68)
    refused(tmp_path, folder, "mismatched|cannot load")


def test_more_weights_than_the_model_has(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    refused(tmp_path, folder, r"7 unexpected keys|9 unexpected keys")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file(folder: Path, tmp_path: Path, missing: str) -> None:
    (folder / missing).unlink()
    refused(tmp_path, folder, rf"expected {missing}.* in ")


@pytest.mark.parametrize("text", ["", "{", "[]", '"llama"', "\x00", "null"])
def test_configuration_that_is_no_object(folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(tmp_path, folder, r"config\.json is not JSON|expected a JSON object in .*config\.json")


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "no-such-type"}, {"model_type": "llama", "hidden_size": "x"}]
)
def test_configuration_of_no_known_model(folder: Path, tmp_path: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    refused(tmp_path, folder, f"transformers cannot load {folder}: ")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self._path,)


@pytest.fixture
def trap(tmp_path: Path) -> bytes:
    marker = tmp_path / "unpickled"
    content = pickle.dumps({"model.norm.weight": Trap(marker)})
    pickle.loads(content)
    assert marker.is_dir()
    marker.rmdir()
    return content


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "x.pth", "last.ckpt"],
)
def test_pickled_weights_are_refused_unread(
    folder: Path, tmp_path: Path, trap: bytes, name: str
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(trap)
    error = refused(tmp_path, folder, f"holds pickled weights .{name}.")
    assert "convert them to safetensors" in str(error)
    assert not (tmp_path / "unpickled").exists()


def test_pickle_by_the_name_of_safetensors(folder: Path, tmp_path: Path, trap: bytes) -> None:
    (folder / "model.safetensors").write_bytes(trap)
    refused(tmp_path, folder, "model.safetensors is corrupt or cut short")
    assert not (tmp_path / "unpickled").exists()


def test_pickles_beside_good_weights_are_not_read(
    folder: Path, tmp_path: Path, trap: bytes
) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(trap)
    compress(folder, MAGNITUDE, output=tmp_path / "out")
    assert not (tmp_path / "unpickled").exists()
    assert not list((tmp_path / "out").glob("*.bin"))


def code_that_leaves_a_mark(folder: Path, marker: Path) -> None:
    (folder / "own_code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")


def test_code_of_the_model_is_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    code_that_leaves_a_mark(folder, tmp_path / "run")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own_code.Model"})
    error = refused(tmp_path, folder, "brings its own Python code .auto_map in config.json.")
    assert "trust_remote_code" in str(error)
    assert not (tmp_path / "run").exists()


def test_code_of_the_tokenizer_is_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    code_that_leaves_a_mark(folder, tmp_path / "run")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own_code.Tokenizer", None]}})
    )
    refused(tmp_path, folder, f"the tokenizer in {folder} cannot be loaded")
    assert not (tmp_path / "run").exists()


def test_tokenizer_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(tmp_path, folder, f"the tokenizer in {folder} cannot be loaded")


# Calibration.


@pytest.mark.parametrize(
    "recipe",
    [
        prune(method="wanda", pattern="2:4"),
        prune(method="sparsegpt", sparsity=0.5),
        drop(count=1),
        {"stages": [*MAGNITUDE["stages"], *drop(count=1)["stages"]]},
        {"stages": [*MAGNITUDE["stages"], *WANDA["stages"]]},
    ],
)
def test_calibration_is_missing(tmp_path: Path, folder: Path, recipe: Any) -> None:
    for model in (tiny_model("llama"), folder):
        refused(tmp_path, model, "this recipe needs calibration", recipe, calibration=None)


def test_empty_calibration(tmp_path: Path) -> None:
    empty_file = tmp_path / "empty.txt"
    empty_file.write_text("")
    empty_folder = tmp_path / "empty"
    empty_folder.mkdir()
    folder_of_nothing = tmp_path / "nothing"
    folder_of_nothing.mkdir()
    (folder_of_nothing / "a.txt").write_text("")
    (folder_of_nothing / "b.jsonl").write_text("\n\n")
    cases: list[tuple[Any, str]] = [
        (empty_file, "calibration is empty"),
        (str(empty_file), "calibration is empty"),
        (empty_folder, "holds no files ending in"),
        (folder_of_nothing, "calibration is empty"),
        ([], "calibration is empty"),
        (["", ""], "calibration is empty"),
        (torch.zeros(0, 8, dtype=torch.long), "calibration is empty"),
        (torch.zeros(4, 0, dtype=torch.long), "expected at least 2 tokens, got 0"),
    ]
    for source, message in cases:
        refused(tmp_path, tiny_model("llama"), message, calibration=source, tokenizer=words())


def test_calibration_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(text_of(20))
    model, tokenizer = tiny_model("llama"), words()
    message = "calibration is too short: .* gives 20 tokens, but one window .* needs "
    refused(tmp_path, model, message + "128", calibration=path, tokenizer=tokenizer)
    refused(
        tmp_path, model, message + "21", calibration=path, tokenizer=tokenizer, max_seq_length=21
    )
    refused(tmp_path, model, message + "128", calibration=[text_of(20)], tokenizer=tokenizer)
    compress(model, WANDA, calibration=path, tokenizer=tokenizer, max_seq_length=20)
    one = torch.ones(3, 1, dtype=torch.long)
    refused(tmp_path, model, "too short: expected at least 2 tokens, got 1", calibration=one)


@pytest.mark.parametrize(
    "options",
    [
        {"num_calibration_samples": 0},
        {"num_calibration_samples": -1},
        {"max_seq_length": 1},
        {"max_seq_length": 0},
        {"max_seq_length": -5},
    ],
)
def test_no_windows(tmp_path: Path, options: dict[str, Any]) -> None:
    message = "expected num_calibration_samples of at least 1 and max_seq_length of at least 2"
    texts = [text_of(500)]
    model = tiny_model("llama")
    refused(tmp_path, model, message, calibration=texts, tokenizer=words(), **options)


@pytest.mark.parametrize("token", [VOCAB_SIZE, VOCAB_SIZE + 1, 2**40, -1, -100])
def test_tokens_outside_the_vocabulary(tmp_path: Path, token: int) -> None:
    ids = some_ids()
    ids[2, 5] = token
    message = f"token ids from 0 to {VOCAB_SIZE - 1}.*sample 2 holds {token};"
    refused(tmp_path, tiny_model("llama"), message, calibration=ids)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    config = FAMILIES["llama"](2)
    config.vocab_size = 50
    model = model_from(config)
    message = "token ids from 0 to 49.*another model's tokenizer"
    texts = [text_of(500)]
    refused(
        tmp_path, model, message, calibration=texts, tokenizer=words(), num_calibration_samples=4
    )


def test_samples_longer_than_the_context(tmp_path: Path) -> None:
    model = tiny_model("llama")
    message = "windows of 129 tokens do not fit the model's context of 128"
    refused(tmp_path, model, message, calibration=some_ids(2, 129))
    refused(
        tmp_path,
        model,
        message,
        calibration=[text_of(500)],
        tokenizer=words(),
        max_seq_length=129,
        num_calibration_samples=2,
    )
    compress(model, WANDA, calibration=some_ids(2, 128))


@pytest.mark.parametrize(
    "ids",
    [
        torch.ones(4),
        torch.ones(4, dtype=torch.long),
        torch.ones(2, 3, 4, dtype=torch.long),
        torch.ones(4, 8),
        torch.ones(4, 8, dtype=torch.bool),
        torch.tensor(3),
    ],
)
def test_tensor_that_holds_no_samples(tmp_path: Path, ids: Tensor) -> None:
    message = r"expected calibration token ids as an integer tensor \[samples, length\]"
    refused(tmp_path, tiny_model("llama"), message, calibration=ids)


def test_text_without_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    texts = [text_of(500)]
    message = "calibration from text needs the model's tokenizer"
    refused(tmp_path, tiny_model("llama"), message, calibration=texts)
    refused(tmp_path, folder, message, calibration=texts)


@pytest.mark.parametrize("name", ["no-such.txt", "./no-such", "/no/such", "no-such.jsonl"])
def test_calibration_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    for source in (name, Path(name)):
        message = f"calibration source {source} is neither a file nor a folder"
        refused(tmp_path, tiny_model("llama"), message, calibration=source, tokenizer=words())


@pytest.mark.parametrize("source", [[[5.5, 6.0]], [b"w1 w2 w3"], ["w1", None], {}])
def test_calibration_of_something_else_than_text(tmp_path: Path, source: Any) -> None:
    message = r"calibration, text \d: expected a string|expected a mapping with `input_ids`"
    refused(tmp_path, tiny_model("llama"), message, calibration=source, tokenizer=words())


def test_calibration_that_is_no_source(tmp_path: Path) -> None:
    refused(tmp_path, tiny_model("llama"), "calibration", calibration=5, tokenizer=words())


def test_padding_that_the_mask_does_not_fit(tmp_path: Path) -> None:
    ids = some_ids()
    holes = torch.ones_like(ids)
    holes[1, 4] = 0
    for mask, message in [
        (holes, "mask of calibration sample 1 has holes"),
        (torch.ones(4, 15), r"expected attention_mask \[4, 16\] as input_ids"),
        (torch.zeros_like(ids), "too short: expected at least 2 tokens, got 0"),
    ]:
        source = {"input_ids": ids, "attention_mask": mask}
        refused(tmp_path, tiny_model("llama"), message, calibration=source)


def test_evaluation_text_that_cannot_be_measured(tmp_path: Path) -> None:
    model = tiny_model("llama")
    (tmp_path / "text.txt").write_text(text_of(300))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("w1")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused(
        tmp_path,
        model,
        "an evaluation text needs the model's tokenizer",
        evaluation_text=tmp_path / "text.txt",
    )
    for name, message in [
        ("missing.txt", "expected a UTF-8 text file, but .*missing.txt"),
        ("binary.txt", "expected a UTF-8 text file, but .*binary.txt"),
        ("empty.txt", "expected a text with at least one token"),
        ("one.txt", "expected a text of at least 2 tokens"),
    ]:
        refused(tmp_path, model, message, evaluation_text=tmp_path / name, tokenizer=words())


# Recipes that do not fit.


def test_columns_that_the_group_does_not_divide(tmp_path: Path) -> None:
    config = FAMILIES["llama"](2)
    assert isinstance(config, LlamaConfig)
    config.intermediate_size = 62
    model = model_from(config)
    message = (
        r"expected K divisible by the group.*model\.layers\.0\.mlp\.down_proj with K = 62; "
        r"model\.layers\.1\.mlp\.down_proj with K = 62"
    )
    for method in ("wanda", "magnitude", "sparsegpt"):
        refused(tmp_path, model, message, prune(method=method, pattern="2:4"))
    override = {"targets": ["re:.*q_proj"], "pattern": "2:7"}
    refused(
        tmp_path,
        model,
        r"model\.layers\.0\.self_attn\.q_proj with K = 32",
        prune(sparsity=0.5, overrides=[override]),
    )
    many = refused(tmp_path, tiny_model("llama"), "K = 32", prune(pattern="1:3"))
    assert "and 11 more" in str(many)
    # As the message says: leave them out, or give them another pattern.
    ignoring = prune(pattern="2:4", ignore=["re:.*down_proj"])
    compress(model, ignoring, calibration=some_ids(), output=tmp_path / "ignored")
    other = {"targets": ["re:.*down_proj"], "sparsity": 0.5}
    compress(model, prune(pattern="2:4", overrides=[other]), calibration=some_ids())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_proj"]}, r"target 'q_proj' matches none of the model's 14 .*q_proj"),
        ({"targets": ["Linear", "Conv1D"]}, "target 'Conv1D' matches none"),
        ({"targets": ["re:.*self_atn"]}, "target 're:.*self_atn' matches none"),
        (
            {"targets": ["lm_head"]},
            "target 'lm_head' matches none .*: lm_head is left alone .outside",
        ),
        ({"targets": ["model.layers.2.mlp.up_proj"]}, "nearest names: .*mlp.up_proj"),
        ({"ignore": ["head"]}, "ignore 'head' matches none"),
        ({"ignore": ["re:.*gate$"]}, "ignore 're:.*gate.' matches none"),
        ({"targets": ["re:("]}, "not a regular expression"),
        ({"ignore": ["re:*"]}, "not a regular expression"),
        (
            {"overrides": [{"targets": ["re:.*out_proj"], "pattern": "2:4"}]},
            "override target 're:.*out_proj' matches none",
        ),
        (
            {
                "ignore": ["re:.*q_proj"],
                "overrides": [{"targets": ["re:.*q_proj"], "pattern": "2:4"}],
            },
            "override target 're:.*q_proj' matches none",
        ),
        ({"ignore": ["Linear"]}, "leave none of the model's 14 weight matrices"),
        ({"targets": ["re:.*q_proj"], "ignore": ["re:.*attn"]}, "leave none"),
        ({"targets": []}, "`targets` must name at least one layer"),
    ],
)
def test_targets_that_fit_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refused(tmp_path, tiny_model("llama"), message, prune(pattern="2:4", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "0:4"}, "would remove every weight"),
        ({"pattern": "0:0"}, "would remove every weight"),
        ({"pattern": "4:4"}, "would remove nothing"),
        ({"pattern": "5:4"}, "would remove nothing"),
        ({"sparsity": 0.0}, "above 0 and below 1; got 0"),
        ({"sparsity": 1.0}, "above 0 and below 1; got 1"),
        ({"sparsity": 1.5}, "above 0 and below 1; got 1.5"),
        ({"sparsity": -0.5}, "above 0 and below 1; got -0.5"),
        ({"sparsity": float("nan")}, "above 0 and below 1; got nan"),
        ({"sparsity": 0}, "above 0 and below 1; got 0"),
        ({}, "needs `sparsity`"),
        ({"pattern": "2:4", "sparsity": 0.7}, "removes 0.5 of the weights, but sparsity says 0.7"),
        ({"pattern": "two:four"}, "expected pattern `unstructured` or `keep:group`"),
        ({"pattern": "2:4", "overrides": [{"targets": ["Linear"], "pattern": "0:4"}]}, "every"),
        ({"pattern": "2:4", "overrides": [{"targets": [], "pattern": "2:4"}]}, "at least one"),
        ({"pattern": "2:4", "method": "random"}, "expected one of magnitude, wanda, sparsegpt"),
        ({"pattern": "2:4", "sparsty": 0.5}, "sparsty: unknown key"),
        ({"pattern": "2:4", "min_expert_tokens": 0}, "min_expert_tokens"),
        ({"pattern": "2:4", "damping": -1.0}, "damping"),
        ({"pattern": "2:4", "damping": float("inf")}, "damping"),
        ({"pattern": "2:4", "damping": float("nan")}, "damping"),
        ({"pattern": "2:4", "block_size": 0}, "block_size"),
        ({"pattern": "2:4", "comparison_group": "row"}, "comparison_group is for unstructured"),
    ],
)
def test_stage_that_makes_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refused(tmp_path, tiny_model("llama"), message, prune(**options))


@pytest.mark.parametrize(
    "recipe",
    [{}, {"stages": []}, {"stages": None}, {"stages": [{}]}, {"version": 3, **WANDA}, {"a": 1}],
)
def test_recipe_that_is_none(tmp_path: Path, recipe: Any) -> None:
    refused(tmp_path, tiny_model("llama"), "not a valid recipe|at least one stage", recipe)


def test_recipe_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = tmp_path / "recipe.yaml"
    missing = f"expected a recipe file, but {path} is not a file"
    refused(tmp_path, model, missing, path)
    refused(tmp_path, model, missing, str(path))
    refused(tmp_path, model, "is not a file", tmp_path)
    for text, message in [
        ("stages: [", "is neither YAML nor JSON"),
        ("", "is not a valid recipe: .*expected keys and values, got None"),
        ("- a\n- b\n", "is not a valid recipe"),
        ("just some words", "is not a valid recipe"),
        ("stages: 2001-99-99", "recipe.yaml"),
        ("!!python/object/apply:os.system ['false']", "recipe.yaml"),
        (f"stages: [{{stage: prune, sparsity: 1{'0' * 400}}}]", "recipe.yaml"),
    ]:
        path.write_text(text)
        refused(tmp_path, model, message, path)
    path.write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, model, "recipe.yaml", path)


@pytest.mark.parametrize("recipe", [None, 5, ["prune"], "stages: [{stage: prune, sparsity: 0.5}]"])
def test_recipe_that_is_neither_values_nor_a_file(tmp_path: Path, recipe: Any) -> None:
    refused(tmp_path, tiny_model("llama"), "expected a recipe|stages.0: expected keys", recipe)


@pytest.mark.parametrize(
    "options", [{"pattern": "4:8"}, {"sparsity": 0.5}, {"pattern": "3:4"}], ids=str
)
def test_nothing_that_could_be_compact(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    message = "expected a stage that makes 2:4 or low-rank layers, or takes .* the recipe has none"
    refused(tmp_path, model, message, prune(**options), checkpoint_format="compact")
    # What was 2:4 before may well be compact.
    compress(model, prune(pattern="2:4"), calibration=some_ids())
    compress(model, prune(pattern="3:4"), calibration=some_ids(), checkpoint_format="compact")


def test_adapters_that_are_not_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=4, target_modules=["q_proj"])
    )
    refused(tmp_path, adapted, "expected a plain model, but it is PEFT's PeftModel")
    # A folder that holds a model and an adapter is loaded with both.
    tiny_model("llama").save_pretrained(tmp_path / "both")
    adapted.save_pretrained(tmp_path / "both")
    refused(tmp_path, tmp_path / "both", "expected a plain model, but .*q_proj is PEFT's Linear")
    merged = adapted.merge_and_unload()
    compress(merged, prune(pattern="2:4"), calibration=some_ids())


def test_inference_mode(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.inference_mode():
        refused(tmp_path, model, r"outside of torch.inference_mode\(\)")


def test_long_text_in_place_of_a_recipe_file(tmp_path: Path) -> None:
    text = "stages:\n- stage: prune\n  sparsity: 0.5\n" + "# and so on\n" * 30
    refused(tmp_path, tiny_model("llama"), "expected a recipe", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 2}, "would remove 2 of 2 blocks; at least one must stay"),
        ({"count": 7}, "would remove 7 of 2 blocks"),
        ({"count": 0}, "expected `count` of at least 1, got 0"),
        ({"count": -1}, "expected `count` of at least 1, got -1"),
        ({"blocks": [2]}, r"names the blocks \[2\], but the model has blocks 0 to 1"),
        ({"blocks": [0, 9]}, r"names the blocks \[9\]"),
        ({"blocks": [0, 1]}, "would remove 2 of 2 blocks"),
        ({"blocks": [-1]}, "distinct 0-based indices"),
        ({"blocks": [1, 1]}, "distinct 0-based indices"),
        ({"blocks": []}, "needs either `count` or `blocks`"),
        ({}, "needs either `count` or `blocks`"),
        ({"count": 1, "blocks": [0]}, "needs either `count` or `blocks`"),
        (
            {"count": 1, "criterion": "luck"},
            "expected one of block_influence, angular_distance, relative_magnitude, perplexity",
        ),
    ],
)
def test_blocks_that_cannot_be_dropped(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    refused(tmp_path, tiny_model("llama"), message, drop(**options))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([drop(count=1), drop(count=1)], "would remove 1 of 1 blocks"),
        ([drop(blocks=[1]), drop(blocks=[1])], r"names the blocks \[1\]"),
        ([drop(blocks=[1]), prune(pattern="2:4", targets=[r"re:model\.layers\.1"])], "target"),
        ([drop(blocks=[1]), prune(pattern="2:4", ignore=["re:.*1.mlp"])], "ignore"),
    ],
)
def test_stage_that_does_not_fit_what_earlier_stages_leave(
    tmp_path: Path, stages: list[dict[str, Any]], message: str
) -> None:
    recipe = {"stages": [stage["stages"][0] for stage in stages]}
    refused(tmp_path, tiny_model("llama"), message, recipe)


@pytest.mark.parametrize(
    ("family", "dropped", "target"),
    [("qwen3_moe_listed", 0, "re:.*gate_proj"), ("qwen3_moe", 0, "re:.*experts")],
)
def test_stage_that_fits_the_blocks_that_earlier_stages_leave(
    family: str, dropped: int, target: str
) -> None:
    """Where blocks differ, a target may match in the blocks that stay alone."""
    stages = [{"stage": "drop_blocks", "blocks": [dropped]}]
    stages += [{**MAGNITUDE["stages"][0], "targets": [target]}]
    compress(tiny_model(family), {"stages": stages})


# Places that cannot be written to.


def made_before(folder: Path) -> None:
    """What stands for an older output of Secateur's."""
    folder.mkdir(exist_ok=True)
    (folder / "secateur_manifest.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")


def test_output_that_is_not_empty(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for model in (tiny_model("llama"), folder, "no/such-model"):
        refused(tmp_path, model, r"out is not empty; choose another, or pass overwrite")
    refused(tmp_path, folder, "is not empty", MAGNITUDE, output=folder)


def test_folder_of_others_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    message = "out was not written by Secateur .it has no secateur_manifest.json."
    refused(tmp_path, tiny_model("llama"), message, overwrite=True)


def test_model_is_not_overwritten(tmp_path: Path, folder: Path) -> None:
    made_before(folder)
    made_before(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(folder)
    message = "is, or holds, the model that is read"
    for output in (folder, tmp_path, link, folder / ".." / folder.name):
        refused(tmp_path, folder, message, MAGNITUDE, output=output, overwrite=True)
    refused(tmp_path, link, message, MAGNITUDE, output=folder, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_place_that_must_not_be_written_to(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for output in (closed / "out", closed / "new" / "out"):
        refused(tmp_path, tiny_model("llama"), "no permission", output=output)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        message = "expected an output folder, but .*out is a file"
        refused(tmp_path, tiny_model("llama"), message, overwrite=overwrite)


def test_nothing_is_touched_where_the_input_is_bad_and_overwrite_is_given(tmp_path: Path) -> None:
    made_before(tmp_path / "out")
    refused(tmp_path, tiny_model("llama"), "needs", calibration=None, overwrite=True)


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "out"
    refused(
        tmp_path,
        tiny_model("llama"),
        "expected an output folder, but .*file is a file",
        output=output,
    )


def test_output_that_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either it works or it is refused before the model is changed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = tiny_model("llama")
    before = state_of(model)
    try:
        compress(model, MAGNITUDE, output=".")
    except SecateurError:
        assert_same_state(model, before)
    else:
        assert (tmp_path / "here" / "config.json").is_file()


@pytest.mark.parametrize("size", ["lots", "", "5 apples", "5", "-1GB", "GB", 0, -5, True, 1e9])
def test_shard_size_that_is_no_size(tmp_path: Path, size: Any) -> None:
    refused(tmp_path, tiny_model("llama"), "expected max_shard_size such as", max_shard_size=size)


@pytest.mark.parametrize("size", ["500MiB", "1GiB", "100KiB"])
def test_shard_size_is_accepted_or_refused_beforehand(tmp_path: Path, size: str) -> None:
    accepted_or_left_alone(tiny_model("llama"), tmp_path / "out", max_shard_size=size)


def accepted_or_left_alone(model: PreTrainedModel, output: Path, **options: Any) -> None:
    """What cannot be written must not be found when the whole work has been done."""
    before = state_of(model)
    try:
        compress(model, MAGNITUDE, output=output, **options)
    except SecateurError:
        assert_same_state(model, before)
    else:
        assert (output / "config.json").is_file()


def test_generation_settings_that_cannot_be_saved(tmp_path: Path) -> None:
    """As people set them on a model in memory."""
    model = tiny_model("llama")
    assert model.generation_config is not None
    model.generation_config.temperature = 0.6
    accepted_or_left_alone(model, tmp_path / "out")


def test_generation_settings_of_published_models(folder: Path, tmp_path: Path) -> None:
    """Temperature without sampling is common, and is saved as it was loaded."""
    settings = {"temperature": 0.6, "top_p": 0.9}
    edit_json(folder / "generation_config.json", **settings)
    compress(folder, MAGNITUDE, output=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings.items() <= written.items()


def test_context_shorter_than_the_probe(tmp_path: Path) -> None:
    config = FAMILIES["gpt2"](2)
    config.n_positions = 8
    compress(model_from(config), WANDA, calibration=some_ids(4, 8), output=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


# No space.


def with_free_space(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> list[Path]:
    asked: list[Path] = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(total=10**12, used=0, free=num_bytes)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return asked


@pytest.mark.parametrize("overwrite", [False, True])
def test_too_little_space_is_seen_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    model = tiny_model("llama")
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    (tmp_path / "out").mkdir()
    if overwrite:
        made_before(tmp_path / "out")
    with_free_space(monkeypatch, size + (32 << 20) - 1)
    message = r"expected 32 MiB of free space for .*out, but .* has 32 MiB"
    refused(tmp_path, model, message, kind=OutOfSpaceError, overwrite=overwrite)
    asked = with_free_space(monkeypatch, size + (32 << 20))
    compress(model, WANDA, calibration=some_ids(), output=tmp_path / "out", overwrite=overwrite)
    assert asked == [tmp_path / "out"]


def test_space_is_that_of_the_nearest_folder_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_free_space(monkeypatch, 0)
    output = tmp_path / "new" / "newer" / "out"
    refused(tmp_path, tiny_model("llama"), "free space", kind=OutOfSpaceError, output=output)
    assert asked == [tmp_path]


def test_no_space_is_needed_where_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_space(monkeypatch, 0)
    compress(tiny_model("llama"), MAGNITUDE)


def test_disk_that_is_full_half_way(folder: Path, tmp_path: Path) -> None:
    """For real: no file of this process may grow beyond half of the weights."""
    old = tmp_path / "out"
    made_before(old)
    (old / "model.safetensors").write_bytes(b"old weights")
    before = files_in(tmp_path)
    limit = (folder / "model.safetensors").stat().st_size // 2
    code = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from secateur.cli import main\nmain()"
    )
    command = ["compress", str(folder), "--output", str(old), "--overwrite"]
    done = run_python("-c", code, *command, "--method", "magnitude", "--pattern", "2:4")
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: no space left to write")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files_in(tmp_path) == before
