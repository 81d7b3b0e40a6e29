import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError, VerificationError
from secateur.plain import from_plain, to_plain


@dataclass(frozen=True)
class Leaf:
    text: str
    number: int
    ratio: float
    flag: bool
    colour: Literal["red", "green"] = "red"


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square", "box"] = "square"
    side: float
    leaf: Leaf | None = None


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    pair: tuple[int, str]
    shapes: tuple[Circle | Square, ...]
    ratios: dict[str, float]
    by_name: dict[str, tuple[Leaf, ...]]
    maybe: Leaf | None = None
    old_style: Optional[int] = None  # noqa: UP045
    either: int | str = 0
    version: Literal[1, 2] = 1
    anything: Any = None
    made: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SecateurError(f"expected size of at least 1, got {self.size}")


@dataclass(frozen=True)
class Holder:
    first: Checked
    rest: tuple[Checked, ...] = ()


FLOATS = st.floats(allow_nan=False)
LEAVES = st.builds(
    Leaf, st.text(), st.integers(), FLOATS, st.booleans(), st.sampled_from(["red", "green"])
)
SHAPES = st.one_of(
    st.builds(Circle, radius=FLOATS),
    st.builds(
        Square,
        kind=st.sampled_from(["square", "box"]),
        side=FLOATS,
        leaf=st.none() | LEAVES,
    ),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # What stands for a float elsewhere is text here.
    | st.text()
    | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TREES = st.builds(
    Tree,
    leaf=LEAVES,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    shapes=st.lists(SHAPES, max_size=3).map(tuple),
    ratios=st.dictionaries(st.text(), FLOATS, max_size=3),
    by_name=st.dictionaries(st.text(), st.lists(LEAVES, max_size=2).map(tuple), max_size=2),
    maybe=st.none() | LEAVES,
    old_style=st.none() | st.integers(),
    either=st.integers() | st.text(),
    version=st.sampled_from([1, 2]),
    anything=JSON,
    made=st.lists(st.text(), max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=150)
@given(tree=TREES)
def test_round_trip(tree: Tree) -> None:
    plain = to_plain(tree)
    assert from_plain(Tree, plain) == tree
    # allow_nan=False: nothing that JSON has no word for.
    text = json.dumps(plain, allow_nan=False)
    assert from_plain(Tree, json.loads(text)) == tree
    assert to_plain(from_plain(Tree, json.loads(text))) == plain


@settings(deadline=None, max_examples=50)
@given(leaf=LEAVES)
def test_types_come_back(leaf: Leaf) -> None:
    back = from_plain(Leaf, json.loads(json.dumps(to_plain(leaf))))
    for name in ("text", "number", "ratio", "flag", "colour"):
        assert type(getattr(back, name)) is type(getattr(leaf, name))
    assert math.copysign(1, back.ratio) == math.copysign(1, leaf.ratio)


def leaf(**changes: Any) -> dict[str, Any]:
    return {"text": "a", "number": 1, "ratio": 0.5, "flag": True, **changes}


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "leaf": leaf(),
        "leaves": [],
        "pair": [1, "b"],
        "shapes": [],
        "ratios": {},
        "by_name": {},
        **changes,
    }


@pytest.mark.parametrize(
    ("value", "name"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_floats_that_json_has_no_number_for(value: float, name: str) -> None:
    assert to_plain(value) == name
    assert to_plain({"a": (value,)}) == {"a": [name]}
    back = from_plain(Leaf, leaf(ratio=name)).ratio
    assert back == value or (math.isnan(back) and math.isnan(value))
    assert from_plain(Leaf, leaf(text=name)).text == name
    # As YAML gives them.
    assert repr(from_plain(Leaf, leaf(ratio=value)).ratio) == repr(value)


def test_to_plain_of_what_is_plain_already() -> None:
    for value in (None, True, 3, 0.5, "a", [1, [2]], {"a": {"b": None}}):
        assert to_plain(value) == value
    assert to_plain((1, (2, Leaf("a", 1, 0.5, True)))) == [1, [2, {**leaf(), "colour": "red"}]]
    assert to_plain({1: 2}) == {"1": 2}
    assert to_plain(Leaf) is Leaf


def test_to_plain_copies() -> None:
    values = {"a": [1]}
    plain = to_plain(values)
    plain["a"].append(2)
    assert values == {"a": [1]}


def test_defaults_may_be_left_out() -> None:
    built = from_plain(Tree, tree())
    assert (built.maybe, built.old_style, built.either, built.version) == (None, None, 0, 1)
    assert built.made == ()
    assert built.leaf.colour == "red"


def test_integers_are_numbers_where_a_float_is_wanted() -> None:
    ratio = from_plain(Leaf, leaf(ratio=3)).ratio
    assert (ratio, type(ratio)) == (3.0, float)


def test_tuples_pass_for_lists() -> None:
    assert from_plain(Tree, tree(pair=(1, "b"))).pair == (1, "b")


def test_the_tag_decides_between_dataclasses() -> None:
    shapes = [{"kind": "circle", "radius": 1}, {"kind": "box", "side": 2}]
    assert from_plain(Tree, tree(shapes=shapes)).shapes == (
        Circle(radius=1.0),
        Square(kind="box", side=2.0),
    )


FAULTS: list[tuple[Any, str]] = [
    # Not what a dataclass is made of.
    (None, "value: expected keys and values, got None"),
    ([], "value: expected keys and values, got []"),
    ("text", "value: expected keys and values, got 'text'"),
    (5, "value: expected keys and values, got 5"),
    (tree(leaf=None), "leaf: expected keys and values, got None"),
    (tree(leaf=[1]), "leaf: expected keys and values, got [1]"),
    (tree(leaves=[leaf(), 5]), "leaves.1: expected keys and values, got 5"),
    # Keys.
    (
        tree(leaf=leaf(sise=1)),
        "leaf.sise: unknown key; known are text, number, ratio, flag, colour",
    ),
    (tree(zebra=1, aardvark=2), "aardvark: unknown key; known are leaf, leaves, pair, shapes"),
    (tree(leaf={**leaf(), 7: 1}), "leaf.7: unknown key"),
    (tree(leaf={"text": "a"}), "leaf.number: is missing"),
    ({}, "leaf: is missing"),
    # Scalars.
    (tree(leaf=leaf(text=5)), "leaf.text: expected text, got 5"),
    (tree(leaf=leaf(text=None)), "leaf.text: expected text, got None"),
    (tree(leaf=leaf(number="1")), "leaf.number: expected a whole number, got '1'"),
    (tree(leaf=leaf(number=1.0)), "leaf.number: expected a whole number, got 1.0"),
    (tree(leaf=leaf(number=True)), "leaf.number: expected a whole number, got True"),
    (tree(leaf=leaf(ratio="0.5")), "leaf.ratio: expected float, got '0.5'"),
    (tree(leaf=leaf(ratio="nan")), "leaf.ratio: expected float, got 'nan'"),
    (tree(leaf=leaf(ratio=True)), "leaf.ratio: expected float, got True"),
    (tree(leaf=leaf(ratio=None)), "leaf.ratio: expected float, got None"),
    (tree(leaf=leaf(ratio=10**400)), "leaf.ratio: expected "),
    (tree(leaf=leaf(flag=1)), "leaf.flag: expected bool, got 1"),
    (tree(leaf=leaf(flag="yes")), "leaf.flag: expected bool, got 'yes'"),
    (tree(leaf=leaf(colour="blue")), "leaf.colour: expected one of red, green, got 'blue'"),
    (tree(leaf=leaf(colour=None)), "leaf.colour: expected one of red, green, got None"),
    (tree(leaf=leaf(colour=["red"])), "leaf.colour: expected one of red, green, got ['red']"),
    (tree(version=3), "version: expected one of 1, 2, got 3"),
    (tree(version=True), "version: expected one of 1, 2, got True"),
    (tree(version=1.0), "version: expected one of 1, 2, got 1.0"),
    (tree(version="1"), "version: expected one of 1, 2, got '1'"),
    # Lists and dicts.
    (tree(leaves={}), "leaves: expected a list, got {}"),
    (tree(leaves="ab"), "leaves: expected a list, got 'ab'"),
    (tree(made="ab"), "made: expected a list, got 'ab'"),
    (tree(made=["a", 5]), "made.1: expected text, got 5"),
    (tree(pair=[1]), "pair: expected a list of 2, got [1]"),
    (tree(pair=[1, "a", 2]), "pair: expected a list of 2, got [1, 'a', 2]"),
    (tree(pair=["a", 1]), "pair.0: expected a whole number, got 'a'"),
    (tree(ratios=[]), "ratios: expected keys and values, got []"),
    (tree(ratios={"a": "b"}), "ratios.a: expected float, got 'b'"),
    (tree(by_name={"a": [leaf(number="b")]}), "by_name.a.0.number: expected a whole number"),
    # Unions.
    (tree(maybe=5), "maybe: expected keys and values, got 5"),
    (tree(maybe=leaf(number="b")), "maybe.number: expected a whole number, got 'b'"),
    (tree(old_style="b"), "old_style: expected a whole number, got 'b'"),
    (tree(either=None), "either: expected int or str, got None"),
    (tree(either=0.5), "either: expected int or str, got 0.5"),
    (tree(either=True), "either: expected int or str, got True"),
    (tree(shapes=[{"radius": 1}]), "shapes.0.kind: is missing; one of circle, square, box"),
    (
        tree(shapes=[{"kind": "cube"}]),
        "shapes.0.kind: expected one of circle, square, box, got 'cube'",
    ),
    (tree(shapes=[{"kind": []}]), "shapes.0.kind: expected one of circle, square, box, got []"),
    (tree(shapes=["circle"]), "shapes.0: expected keys and values, got 'circle'"),
    (tree(shapes=[{"kind": "circle", "side": 1}]), "shapes.0.side: unknown key; known are kind"),
    (tree(shapes=[{"kind": "box"}]), "shapes.0.side: is missing"),
    (tree(shapes=[None]), "shapes.0: expected keys and values, got None"),
]


@pytest.mark.parametrize(("value", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_faults_name_their_path(value: Any, message: str) -> None:
    with pytest.raises(SecateurError) as caught:
        from_plain(Tree, value)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_long_values_are_cut_short() -> None:
    with pytest.raises(SecateurError) as caught:
        from_plain(Tree, tree(leaf=leaf(number="x" * 1000)))
    assert str(caught.value).endswith("xxx...")
    assert len(str(caught.value)) < 150


def test_path_of_the_whole_comes_first() -> None:
    with pytest.raises(SecateurError, match=r"^file\.leaf\.number: expected a whole number"):
        from_plain(Tree, tree(leaf=leaf(number="b")), "file")
    with pytest.raises(SecateurError, match=r"^file: expected keys and values"):
        from_plain(Tree, 5, "file")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"first": {"size": 0}}, "first: expected size of at least 1, got 0"),
        ({"first": {"size": 1}, "rest": [{"size": 2}, {"size": -1}]}, "rest.1: expected size"),
    ],
)
def test_faults_of_the_dataclass_itself_get_a_path(value: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=f"^{re.escape(message)}") as caught:
        from_plain(Holder, value)
    assert caught.value.__cause__ is None
    with pytest.raises(SecateurError, match=r"^expected size of at least 1, got 0$"):
        from_plain(Checked, {"size": 0})


def test_kind_of_error_stays() -> None:
    @dataclass(frozen=True)
    class Odd:
        number: int

        def __post_init__(self) -> None:
            raise VerificationError("odd")

    with pytest.raises(VerificationError, match=r"^here: odd$"):
        from_plain(Odd, {"number": 1}, "here")


@settings(deadline=None, max_examples=150)
@given(value=JSON)
def test_no_other_error_whatever_comes(value: Any) -> None:
    with pytest.raises(SecateurError):
        from_plain(Tree, value)


@settings(deadline=None, max_examples=150)
@given(built=TREES, data=st.data(), junk=JSON)
def test_no_other_error_where_one_value_is_something_else(
    built: Tree, data: st.DataObject, junk: Any
) -> None:
    plain = to_plain(built)
    name = data.draw(st.sampled_from(sorted(plain)))
    plain[name] = junk
    try:
        built = from_plain(Tree, plain)
        message = ""
    except SecateurError as error:
        message = str(error)
    # Where it happened to fit, it can be written again.
    assert message.startswith(name) if message else to_plain(built).keys() == plain.keys()
