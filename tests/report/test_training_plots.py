"""Curves of trainings as pictures, from what is read in them."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from training_builders import inherit, recover, run

from secateur.report.training_plots import inherit_svg, recover_svg
from secateur.report.training_record import InheritRound

SVG = "{http://www.w3.org/2000/svg}"
NAN, INFINITY = math.nan, math.inf


def texts(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def rounds(*losses: tuple[float, ...]) -> tuple[InheritRound, ...]:
    return tuple(
        InheritRound(num_blocks=2 * number, run=run(entry))
        for number, entry in enumerate(losses, start=1)
    )


PICTURES: dict[str, Callable[[], str]] = {
    "recover": lambda: recover_svg(recover()),
    "no dense model": lambda: recover_svg(recover(dense_loss=None)),
    "worse": lambda: recover_svg(recover((5.25, 5.5, 5.75))),
    "the start alone": lambda: recover_svg(recover((5.25,))),
    "broke": lambda: recover_svg(recover((5.25, 4.5, NAN), run_changes={"kept_step": 100})),
    "endless": lambda: recover_svg(recover((5.25, INFINITY, 4.0))),
    "broken dense model": lambda: recover_svg(recover(dense_loss=NAN)),
    "no loss at all": lambda: recover_svg(recover((NAN, NAN), dense_loss=INFINITY)),
    "inherit": lambda: inherit_svg(inherit()),
    "one round": lambda: inherit_svg(inherit(*rounds((4.5, 4.0)))),
    "a round that broke": lambda: inherit_svg(inherit(*rounds((4.5, NAN), (4.25, 4.0)))),
    "all rounds broke": lambda: inherit_svg(inherit(*rounds((NAN, INFINITY)), parent_loss=NAN)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_well_formed_and_hold_numbers(name: str) -> None:
    svg = PICTURES[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None or root.get("aria-label")
    assert not re.search(r'\b(d|x|y|x1|y1|x2|y2)="[^"]*(nan|inf)', svg, re.IGNORECASE)
    assert not re.search(r'transform="[^"]*(nan|inf)', svg, re.IGNORECASE)
    assert svg == PICTURES[name]()


def test_a_recovery_shows_the_dense_model_and_what_was_kept() -> None:
    svg = recover_svg(recover(run_changes={"kept_step": 200}))
    shown = texts(svg)
    assert "kept: 4.250" in shown
    assert "dense" in shown
    assert "3.750" in shown
    assert {"held out", "trained on"} <= set(shown)
    assert "Tokens trained on (millions)" in shown
    assert "Loss on held-out text by tokens trained on: 0: 5.2500, 409,600: 4.5000" in svg
    assert "The dense model: 3.7500." in svg


def test_without_a_dense_model_there_is_no_line() -> None:
    svg = recover_svg(recover(dense_loss=None))
    assert "dense" not in texts(svg)
    assert "The dense model" not in svg


def test_an_inheritance_shows_rounds_and_parent() -> None:
    svg = inherit_svg(inherit())
    shown = texts(svg)
    assert {"4 blocks", "6 blocks", "parent, 8 blocks", "3.750"} <= set(shown)
    assert "Loss by round: 4 blocks: 4.5000 to 4.0000; 6 blocks: 3.9375 to 3.6875." in svg
    assert "The parent: 3.7500." in svg


@pytest.mark.parametrize("broken", [NAN, INFINITY])
def test_what_broke_hides_nothing_else(broken: float) -> None:
    shown = texts(inherit_svg(inherit(*rounds((broken, broken), (4.25, 4.0)))))
    assert {"2 blocks", "4 blocks", "3.750"} <= set(shown)
    assert "dense" not in texts(recover_svg(recover(dense_loss=broken)))
    svg = recover_svg(recover((5.25, broken), run_changes={"kept_step": 100}))
    assert not any(text.startswith("kept") for text in texts(svg))


@pytest.mark.parametrize("draw", [recover_svg, inherit_svg], ids=["recover", "inherit"])
def test_losses_of_another_kind_are_not_drawn(
    draw: Callable[..., str],
) -> None:
    make = recover if draw is recover_svg else inherit
    assert "trained on" in texts(draw(make()))
    for minimised in ("distillation", "cross_entropy and block outputs"):
        assert "trained on" not in texts(draw(make(minimised=minimised)))
