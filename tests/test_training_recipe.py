"""What recipes may say of training, and what they are told when they must not."""

import json
import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.recipe import (
    InheritStage,
    Recipe,
    RecoverStage,
    Training,
    recipe_from_dict,
    recipe_from_text,
)
from secateur.recipe.inherit_stage import DEFAULT_INHERIT_RATE, InheritedPart, Optimizer
from secateur.recipe.recover_stage import DEFAULT_LEARNING_RATE, RecoverMethod
from secateur.recipe.training import DataFormat, Precision, Schedule

NAN, INFINITY = float("nan"), float("inf")
COUNTS = st.integers(1, 10**12)
RATES = st.floats(1e-9, 1e3)
SHARES = st.floats(0, 1)
NAMES = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8)


def refused(build: Any, message: str, **values: Any) -> None:
    with pytest.raises(SecateurError, match=f"^{re.escape(message)}$"):
        build(**values)


def training(**changes: Any) -> Training:
    return Training(**{"data": ("text.txt",), **changes})


def recover(**changes: Any) -> RecoverStage:
    return RecoverStage(**{"training": training(), **changes})


def inherit(**changes: Any) -> InheritStage:
    return InheritStage(**{"blocks": 2, "training": training(), **changes})


# Training.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "`data` must name at least one text"),
        (
            {"loss": "mse"},
            "expected loss one of cross_entropy, distillation, got mse",
        ),
        ({"schedule": ""}, "expected schedule one of cosine, linear, constant, got "),
        (
            {"precision": "float16"},
            "expected precision one of auto, float32, bfloat16, got float16",
        ),
        ({"format": "csv"}, "expected format one of auto, text, chat, got csv"),
        ({"held_out": 0}, "expected held_out of at least 1, got 0"),
        ({"max_seq_length": 1}, "expected max_seq_length of at least 2, got 1"),
        ({"batch_size": -1}, "expected batch_size of at least 1, got -1"),
        ({"gradient_accumulation": 0}, "expected gradient_accumulation of at least 1, got 0"),
        ({"eval_steps": 0}, "expected eval_steps of at least 1, got 0"),
        ({"num_tokens": 0}, "expected num_tokens of at least 1, got 0"),
        ({"patience": 0}, "expected patience of at least 1, got 0"),
        ({"epochs": 0.0}, "expected epochs above 0, got 0.0"),
        ({"epochs": INFINITY}, "expected epochs above 0, got inf"),
        ({"temperature": -1.0}, "expected temperature above 0, got -1.0"),
        ({"temperature": NAN}, "expected temperature above 0, got nan"),
        ({"max_grad_norm": 0.0}, "expected max_grad_norm above 0, got 0.0"),
        ({"learning_rate": 0.0}, "expected a learning_rate above 0, got 0.0"),
        ({"learning_rate": NAN}, "expected a learning_rate above 0, got nan"),
        ({"learning_rate": INFINITY}, "expected a learning_rate above 0, got inf"),
        ({"warmup": 1.1}, "expected warmup between 0 and 1, got 1.1"),
        ({"distillation_weight": -0.1}, "expected distillation_weight between 0 and 1, got -0.1"),
        ({"weight_decay": -0.1}, "expected weight_decay of at least 0, got -0.1"),
        ({"weight_decay": INFINITY}, "expected weight_decay of at least 0, got inf"),
        ({"block_weight": NAN}, "expected block_weight of at least 0, got nan"),
        ({"seed": -1}, "expected 0 <= seed < 2^32, got -1"),
        ({"seed": 2**32}, "expected 0 <= seed < 2^32, got 4294967296"),
        (
            {"temperature": 2.0},
            "temperature and distillation_weight need loss: distillation",
        ),
        (
            {"distillation_weight": 0.5},
            "temperature and distillation_weight need loss: distillation",
        ),
        (
            {"num_tokens": 10, "epochs": 2.0},
            "expected num_tokens or epochs, got both (10 and 2.0)",
        ),
        (
            {"streaming": True, "num_tokens": 10},
            "streaming needs `evaluation`, a text of its own, and `num_tokens`",
        ),
        (
            {"streaming": True, "evaluation": "held_out.txt"},
            "streaming needs `evaluation`, a text of its own, and `num_tokens`",
        ),
        (
            {"patience": 2, "keep_best": False},
            "patience needs keep_best, or the worse weights would be kept",
        ),
    ],
)
def test_training_errors(changes: dict[str, Any], message: str) -> None:
    refused(training, f"training: {message}", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup": 0.0},
        {"warmup": 1.0},
        {"max_seq_length": 2},
        {"seed": 2**32 - 1},
        {"loss": "distillation", "temperature": 2.0, "distillation_weight": 0.0},
        {"streaming": True, "evaluation": "held_out.txt", "num_tokens": 1},
        {"patience": 1},
        {"weight_decay": 0.0, "block_weight": 0.0},
    ],
)
def test_training_that_is_just_allowed(changes: dict[str, Any]) -> None:
    assert training(**changes) == replace(training(), **changes)


def test_who_needs_a_teacher() -> None:
    assert not training().needs_teacher
    assert training(loss="distillation").needs_teacher
    assert training(block_weight=0.1).needs_teacher


# Recover.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "gate"},
            "expected method one of gates, linears, all, lora, head_and_last_blocks, got 'gate'",
        ),
        ({"last_blocks": 0}, "expected last_blocks of at least 1, got 0"),
        ({"lora_rank": 0}, "expected lora_rank of at least 1, got 0"),
        ({"lora_alpha": 0.0}, "expected lora_alpha above 0, got 0.0"),
        ({"lora_alpha": NAN}, "expected lora_alpha above 0, got nan"),
        ({"last_blocks": 5}, "last_blocks is for head_and_last_blocks, not for gates"),
        ({"lora_rank": 4}, "lora_rank is for lora, not for gates"),
        ({"method": "all", "lora_alpha": 8.0}, "lora_alpha is for lora, not for all"),
        ({"near_cut": 0}, "expected near_cut of at least 1, got 0"),
        (
            {"near_cut": 1, "method": "all"},
            "near_cut is for gates, linears and lora, not for all",
        ),
        (
            {"near_cut": 1, "method": "head_and_last_blocks"},
            "near_cut is for gates, linears and lora, not for head_and_last_blocks",
        ),
    ],
)
def test_recover_errors(changes: dict[str, Any], message: str) -> None:
    refused(recover, f"recover: {message}", **changes)


@pytest.mark.parametrize("method", get_args(RecoverMethod))
def test_learning_rates(method: RecoverMethod) -> None:
    default = DEFAULT_LEARNING_RATE[method]
    assert [recover(method=method).learning_rate(width) for width in (64, 256)] == [default] * 2
    assert recover(method=method).learning_rate(4096) == pytest.approx(default / 16)
    given_rate = recover(method=method, training=training(learning_rate=0.5))
    assert given_rate.learning_rate(4096) == 0.5
    assert not given_rate.needs_calibration


# Inherit.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "expected blocks of at least 1, got 0"),
        ({"grow_by": 0}, "expected grow_by of at least 1, got 0"),
        (
            {"start": "copied"},
            "expected start one of inherited, random, stacked, distilled, got 'copied'",
        ),
        ({"part": "all"}, "expected part one of both, attention, mlp, got 'all'"),
        ({"optimizer": "kept"}, "expected optimizer one of restarted, carried, got 'kept'"),
        ({"tolerance": -0.1}, "expected a tolerance of at least 0, got -0.1"),
        ({"tolerance": NAN}, "expected a tolerance of at least 0, got nan"),
        ({"max_blocks": 1}, "expected max_blocks of at least blocks (2), got 1"),
        (
            {"part": "mlp", "start": "random"},
            "part mlp needs start: inherited, but start is random",
        ),
        ({"start": "distilled"}, "start distilled needs training with loss: distillation"),
        (
            {"training": training(block_weight=0.5)},
            "block_weight is for recover; the blocks of a smaller model stand for others",
        ),
    ],
)
def test_inherit_errors(changes: dict[str, Any], message: str) -> None:
    refused(inherit, f"inherit: {message}", **changes)


def test_inherit_rates() -> None:
    assert inherit().learning_rate(256) == DEFAULT_INHERIT_RATE
    assert inherit().learning_rate(1024) == pytest.approx(DEFAULT_INHERIT_RATE / 4)
    assert inherit(training=training(learning_rate=0.5)).learning_rate(1024) == 0.5
    assert not inherit().needs_calibration


# As text.


@st.composite
def trainings(draw: st.DrawFn, loss: str | None = None, blocks: bool = True) -> Training:
    chosen = loss or draw(st.sampled_from(["cross_entropy", "distillation"]))
    is_distilled = chosen == "distillation"
    streaming = draw(st.booleans())
    keep_best = draw(st.booleans())
    num_tokens = draw(COUNTS if streaming else st.none() | COUNTS)
    return Training(
        data=tuple(draw(st.lists(NAMES, min_size=1, max_size=3))),
        format=draw(st.sampled_from(get_args(DataFormat))),
        evaluation=draw(NAMES if streaming else st.none() | NAMES),
        held_out=draw(COUNTS),
        streaming=streaming,
        max_seq_length=draw(st.integers(2, 10**6)),
        num_tokens=num_tokens,
        epochs=draw(RATES) if num_tokens is None else 1.0,
        batch_size=draw(COUNTS),
        gradient_accumulation=draw(COUNTS),
        gradient_checkpointing=draw(st.booleans()),
        learning_rate=draw(st.none() | RATES),
        schedule=draw(st.sampled_from(get_args(Schedule))),
        warmup=draw(SHARES),
        weight_decay=draw(SHARES),
        max_grad_norm=draw(RATES),
        loss=chosen,  # type: ignore[arg-type]
        temperature=draw(RATES) if is_distilled else 1.0,
        distillation_weight=draw(SHARES) if is_distilled else 1.0,
        block_weight=draw(SHARES) if blocks else 0.0,
        precision=draw(st.sampled_from(get_args(Precision))),
        eval_steps=draw(COUNTS),
        patience=draw(st.none() | COUNTS) if keep_best else None,
        keep_best=keep_best,
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def stages(draw: st.DrawFn) -> RecoverStage | InheritStage:
    if draw(st.booleans()):
        method = draw(st.sampled_from(get_args(RecoverMethod)))
        has_near = method in ("gates", "linears", "lora")
        return RecoverStage(
            method=method,
            training=draw(trainings()),
            teacher=draw(st.none() | NAMES),
            near_cut=draw(st.none() | COUNTS) if has_near else None,
            last_blocks=draw(COUNTS) if method == "head_and_last_blocks" else 3,
            lora_rank=draw(COUNTS) if method == "lora" else 8,
            lora_alpha=draw(RATES) if method == "lora" else 16.0,
        )
    start = draw(st.sampled_from(["inherited", "random", "stacked", "distilled"]))
    loss = "distillation" if start == "distilled" else None
    blocks = draw(st.integers(1, 99))
    parts = get_args(InheritedPart) if start == "inherited" else ("both",)
    return InheritStage(
        blocks=blocks,
        training=draw(trainings(loss, blocks=False)),
        grow_by=draw(COUNTS),
        max_blocks=draw(st.none() | st.integers(blocks, 200)),
        tolerance=draw(SHARES),
        start=start,  # type: ignore[arg-type]
        part=draw(st.sampled_from(parts)),
        optimizer=draw(st.sampled_from(get_args(Optimizer))),
    )


@given(st.lists(stages(), min_size=1, max_size=2))
@settings(max_examples=40, deadline=None)
def test_recipes_come_back_from_text(found: list[RecoverStage | InheritStage]) -> None:
    recipe = Recipe(stages=tuple(found))
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert not recipe.needs_calibration


def test_a_recipe_as_people_write_it() -> None:
    recipe = recipe_from_text(
        """
        version: 1
        stages:
          - stage: recover
            training:
              data: [a.txt, b.jsonl]
              learning_rate: 1e-3
          - stage: inherit
            blocks: 4
            training: {data: [a.txt]}
        """,
        "recipe.yaml",
    )
    assert recipe.stages == (
        RecoverStage(training=Training(data=("a.txt", "b.jsonl"), learning_rate=1e-3)),
        InheritStage(blocks=4, training=Training(data=("a.txt",))),
    )


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"stage": "recover"}, "stages.0.*training"),
        ({"stage": "inherit", "training": {"data": ["a"]}}, "stages.0.*blocks"),
        ({"stage": "recover", "training": {}}, r"stages\.0\.training.*data"),
        ({"stage": "recover", "training": {"data": ["a"], "lr": 1}}, r"training\.lr: unknown key"),
        ({"stage": "recover", "training": {"data": "a"}}, r"stages\.0\.training\.data"),
        ({"stage": "recover", "training": {"data": ["a"], "epochs": 0}}, "epochs above 0, got 0"),
        ({"stage": "recover", "blocks": 2, "training": {"data": ["a"]}}, "blocks: unknown key"),
    ],
)
def test_faults_are_named_by_their_place(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        recipe_from_dict({"stages": [stage]})
