from types import SimpleNamespace
from typing import Any

import pytest

from secateur.depth import rules
from secateur.depth.config import drop_from_config
from secateur.errors import SecateurError

NUM_BLOCKS = 6


def namespace(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=NUM_BLOCKS, **fields)


# The tables, entry by entry.


@pytest.mark.parametrize("name", rules.COUNTS)
def test_every_name_of_the_count(name: str) -> None:
    config = SimpleNamespace(**{name: NUM_BLOCKS, "hidden_size": NUM_BLOCKS})
    assert drop_from_config(config, [1], NUM_BLOCKS) == ()
    assert vars(config) == {name: 5, "hidden_size": NUM_BLOCKS}


@pytest.mark.parametrize("name", rules.PER_BLOCK_LISTS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_every_list_with_an_entry_a_block(name: str, kind: type) -> None:
    config = namespace(**{name: kind("abcdef")})
    drop_from_config(config, [1, 4], NUM_BLOCKS)
    assert getattr(config, name) == kind("acdf")


def test_one_number_for_all_blocks_stays() -> None:
    config = namespace(sliding_window=6, intermediate_size=6, num_experts=6, moe_topk=2)
    drop_from_config(config, [1], NUM_BLOCKS)
    assert config == SimpleNamespace(
        num_hidden_layers=5, sliding_window=6, intermediate_size=6, num_experts=6, moe_topk=2
    )


def test_pattern_string() -> None:
    config = namespace(hybrid_override_pattern="M-M*E-")
    drop_from_config(config, [1, 3], NUM_BLOCKS)
    assert config.hybrid_override_pattern == "MME-"


def test_entries_of_extra_layers_stay() -> None:
    config = namespace(layer_types=list("abcdefXY"))
    warnings = drop_from_config(config, [5], NUM_BLOCKS)
    assert config.layer_types == list("abcdeXY")
    assert warnings == (
        "layer_types has 2 more entries than there are blocks: they were kept at its end",
    )


def test_refuses_a_list_that_is_too_short() -> None:
    with pytest.raises(SecateurError, match="layer_types to have an entry for each of 6 blocks"):
        drop_from_config(namespace(layer_types=["a"] * 4), [1], NUM_BLOCKS)


@pytest.mark.parametrize("name", rules.INDEX_LISTS)
def test_every_list_of_indices(name: str) -> None:
    config = namespace(**{name: [0, 1, 3, -1, 7]})
    drop_from_config(config, [1, 2], NUM_BLOCKS)
    assert getattr(config, name) == [0, 1, 3, 5]


def test_indices_in_a_string() -> None:
    config = namespace(moe_layers_enum="1,2,4,5")
    drop_from_config(config, [2], NUM_BLOCKS)
    assert config.moe_layers_enum == "1,3,4"


@pytest.mark.parametrize("name", rules.REFERENCE_LISTS)
def test_every_list_of_references(name: str) -> None:
    config = namespace(**{name: [0, 1, 2, 2, 4, 4]})
    drop_from_config(config, [1, 3], NUM_BLOCKS)
    assert getattr(config, name) == [0, 1, 2, 2]
    with pytest.raises(SecateurError, match=f"{name} says .* 3 needs 2"):
        drop_from_config(namespace(**{name: [0, 1, 2, 2, 4, 4]}), [2], NUM_BLOCKS)


@pytest.mark.parametrize("name", rules.OVERRIDES)
def test_every_override_by_block(name: str) -> None:
    config = namespace(**{name: {"1": {"head_dim": 8}, "4": {"head_dim": 16}}})
    drop_from_config(config, [0, 1], NUM_BLOCKS)
    assert getattr(config, name) == {"2": {"head_dim": 16}}


@pytest.mark.parametrize("name", rules.PREFIX_COUNTS)
def test_every_bound(name: str) -> None:
    config = namespace(**{name: 3})
    drop_from_config(config, [1, 4], NUM_BLOCKS)
    assert getattr(config, name) == 2
    several = namespace(**{name: [1, 5]})
    drop_from_config(several, [1, 4], NUM_BLOCKS)
    assert getattr(several, name) == [1, 3]


@pytest.mark.parametrize("name", rules.LAST_INDICES)
@pytest.mark.parametrize(("before", "after"), [(3, 2), (-1, -1), ([3, 5], [2, 3]), (None, None)])
def test_every_last_index(name: str, before: Any, after: Any) -> None:
    config = namespace(**{name: before})
    drop_from_config(config, [1, 4], NUM_BLOCKS)
    assert getattr(config, name) == after


@pytest.mark.parametrize("name", rules.LAST_INDICES)
def test_refuses_to_drop_everything_up_to_the_last_index(name: str) -> None:
    with pytest.raises(SecateurError, match=f"{name} is 1, and every block up to there"):
        drop_from_config(namespace(**{name: 1}), [0, 1], NUM_BLOCKS)


@pytest.mark.parametrize("name", rules.DEPTH_SCALED)
def test_every_scale_by_depth_keeps_its_effect(name: str) -> None:
    config = SimpleNamespace(**{"num_hidden_layers": 8, name: 1.4})
    drop_from_config(config, [2, 3], 8)
    assert getattr(config, name) / 6**0.5 == pytest.approx(1.4 / 8**0.5)


@pytest.mark.parametrize("name", rules.NEXT_TOKEN_LAYERS)
def test_extra_layers_are_left_with_a_warning(name: str) -> None:
    config = namespace(**{name: 2})
    (warning,) = drop_from_config(config, [1], NUM_BLOCKS)
    assert warning.startswith(f"{name} is 2: these extra layers stay")
    assert getattr(config, name) == 2


@pytest.mark.parametrize("name", rules.REFUSED)
def test_every_refusal(name: str) -> None:
    config = namespace(**{name: 2})
    with pytest.raises(SecateurError, match=f"no block can be dropped while {name} is 2"):
        drop_from_config(config, [1], NUM_BLOCKS)
    assert drop_from_config(namespace(**{name: 0}), [1], NUM_BLOCKS) == ()


@pytest.mark.parametrize("name", rules.FIRST_ENTRIES)
def test_every_first_entry(name: str) -> None:
    entries = ["full", "full", "shared", "full", "shared", "shared"]
    config = namespace(**{name: list(entries)})
    drop_from_config(config, [0], NUM_BLOCKS)
    assert getattr(config, name)[0] == "full"
    with pytest.raises(SecateurError, match=f"{name} to begin with full; the first block to stay"):
        drop_from_config(namespace(**{name: list(entries)}), [0, 1], NUM_BLOCKS)


def test_unknown_list_named_after_layers_is_filtered_with_a_warning() -> None:
    config = namespace(
        layer_scales=[1, 2, 3, 4, 5, 6], mtp_layers=list("abcdef"), eos_token_id=[1] * 6
    )
    (warning,) = drop_from_config(config, [2], NUM_BLOCKS)
    assert warning.startswith("layer_scales is no field that is known here")
    assert config.layer_scales == [1, 2, 4, 5, 6]
    assert config.mtp_layers == list("abcdef")
    assert config.eos_token_id == [1] * 6


# Rules by index.

PHASES: dict[str, dict[str, Any]] = {
    rule.field: {rule.field: 3} for rule in rules.PHASE_RULES if rule.field != "block_types"
}
PHASES["block_types"] = {"block_types": ["recurrent", "recurrent", "attention"]}
PHASES["attn_layer_period"]["attn_layer_offset"] = 1
PHASES["moe_layer_freq"]["first_k_dense_replace"] = 1


@pytest.mark.parametrize("rule", rules.PHASE_RULES, ids=lambda rule: rule.field)
def test_every_rule_by_index(rule: rules.PhaseRule) -> None:
    with pytest.raises(SecateurError, match=rf"{rule.field} = .* blocks \[.*\] would become"):
        drop_from_config(namespace(**PHASES[rule.field]), [1], NUM_BLOCKS)
    for harmless in ([4, 5], [1, 2, 3]):
        config = namespace(**PHASES[rule.field])
        assert drop_from_config(config, harmless, NUM_BLOCKS) == ()
        assert getattr(config, rule.field) == PHASES[rule.field][rule.field]


@pytest.mark.parametrize(
    ("rule", "name"),
    [(rule, name) for rule in rules.PHASE_RULES for name in rule.lists],
    ids=lambda value: getattr(value, "field", value),
)
def test_every_list_that_outdoes_a_rule_by_index(rule: rules.PhaseRule, name: str) -> None:
    config = namespace(**PHASES[rule.field], **{name: [5, 4, 3, 2, 1, 0]})
    (warning,) = drop_from_config(config, [1], NUM_BLOCKS)
    assert f"{name} says what each block is, and {rule.field} = 3 now says otherwise" in warning


@pytest.mark.parametrize("rule", rules.PHASE_RULES, ids=lambda rule: rule.field)
@pytest.mark.parametrize("value", [None, 0, 1, True])
def test_rules_without_a_period_do_not_matter(rule: rules.PhaseRule, value: object) -> None:
    if rule.field not in rules.CYCLES:
        assert drop_from_config(namespace(**{rule.field: value}), [1], NUM_BLOCKS) == ()


def test_window_pattern_as_a_string() -> None:
    with pytest.raises(SecateurError, match="sliding_window_pattern = LLG"):
        drop_from_config(namespace(sliding_window_pattern="LLG"), [1], NUM_BLOCKS)
    assert drop_from_config(namespace(sliding_window_pattern="LLG"), [3, 4, 5], NUM_BLOCKS) == ()


def test_what_can_be_dropped_suits_all_rules_together() -> None:
    fields = {"attn_layer_period": 2, "expert_layer_period": 3}
    with pytest.raises(SecateurError, match="the last blocks, or 6 neighbouring blocks together"):
        drop_from_config(SimpleNamespace(num_hidden_layers=12, **fields), [1], 12)
    config = SimpleNamespace(num_hidden_layers=12, **fields)
    assert drop_from_config(config, range(2, 8), 12) == ()


def test_a_list_that_repeated_itself_warns() -> None:
    """Gemma 2: the period of 2 is known to engines and stands in no field."""
    config = namespace(layer_types=["sliding_attention", "full_attention"] * 3)
    (warning,) = drop_from_config(config, [1], NUM_BLOCKS)
    assert warning.startswith("layer_types repeated itself")
    config = namespace(layer_types=["sliding_attention", "full_attention"] * 3)
    assert drop_from_config(config, [2, 3], NUM_BLOCKS) == ()
