"""A recipe is immutable, validated, hashable, and the same after a trip through TOML."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ftbench.errors import UsageError
from ftbench.recipe import Recipe, build_recipe, read_recipe, shipped_recipes
from one_line import one_line

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = TEXT.filter(str.strip)
COUNT = st.integers(16, 2**60)
AMOUNT = st.floats(1e-9, 1e9)
LEAF = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT | st.none()
OPTIONS = st.dictionaries(
    TEXT,
    st.recursive(
        LEAF,
        lambda inner: st.lists(inner.filter(lambda item: item is not None), max_size=3) | st.dictionaries(TEXT, inner),
        max_leaves=6,
    ),
    max_size=4,
)
RECIPES = st.builds(
    Recipe,
    name=TEXT,
    model=NAME,
    revision=st.none() | TEXT,
    data=NAME,
    lang=TEXT,
    topic=NAME,
    algorithm=NAME,
    options=OPTIONS,
    memory_budget=st.none() | COUNT,
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    tokens=COUNT,
    effective_batch_size=COUNT,
    micro_batch_tokens=COUNT,
    max_length=COUNT,
    weight_decay=AMOUNT,
    warmup=st.floats(0, 1),
    max_grad_norm=AMOUNT,
    evaluation_prompts=COUNT,
    max_new_tokens=COUNT,
    evaluation_batch_size=COUNT,
    seed=COUNT,
    time_limit=st.none() | AMOUNT,
)
# Another valid value of every field.
OTHER: dict[str, Any] = {
    "name": "mine",
    "model": "me/mine",
    "revision": "main",
    "data": "oasst1",
    "lang": "es",
    "topic": "health",
    "algorithm": "dpo",
    "options": {"rank": 8},
    "memory_budget": 2**30,
    "device": "cpu",
    "devices": 2,
    "start": "runs/lora-s0-12345678",
    "precision": "float32",
    "tokens": 1,
    "training_seconds": 60.5,
    "effective_batch_size": 5,
    "micro_batch_tokens": 99,
    "max_length": 99,
    "weight_decay": 0.5,
    "warmup": 0.5,
    "max_grad_norm": 0.5,
    "evaluation_prompts": 99,
    "split": "validation",
    "max_new_tokens": 99,
    "evaluation_batch_size": 99,
    "attack_prompts": 9,
    "checkpoints": 9,
    "checkpoint_prompts": 9,
    "judge": "jury",
    "seed": 1,
    "time_limit": 9.5,
}


@settings(deadline=None, max_examples=80)
@given(RECIPES)
def test_a_recipe_comes_back_from_toml_as_it_was(recipe: Recipe) -> None:
    Path("mine.toml").write_text(recipe.to_toml(), "utf-8", newline="")
    again = read_recipe("mine.toml")
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert hash(again) == hash(recipe)


def test_every_field_has_another_value_to_test_with() -> None:
    assert set(OTHER) == set(Recipe.model_fields) - {"task"}


@pytest.mark.parametrize("field", sorted(OTHER))
def test_the_digest_changes_with_everything_but_the_name(field: str) -> None:
    changed = Recipe().change(**{field: OTHER[field]})
    assert changed != Recipe()
    assert (changed.digest() == Recipe().digest()) == (field == "name")


def test_the_digest_does_not_hang_on_the_order_of_options() -> None:
    first, second = Recipe(options={"a": 1, "b": {"c": 2, "d": 3}}), Recipe(options={"b": {"d": 3, "c": 2}, "a": 1})
    assert first.digest() == second.digest()


def test_a_recipe_cannot_be_changed() -> None:
    recipe, options = Recipe(), {"rank": [8]}
    with pytest.raises(ValidationError):
        recipe.seed = 1  # type: ignore[misc]
    held = Recipe(options=options)
    options["rank"].append(9)
    assert held.options == {"rank": [8]}


def test_change_leaves_the_old_recipe_alone_and_validates() -> None:
    recipe = Recipe()
    assert recipe.change(seed=7).seed == 7
    assert recipe.seed == 0
    with one_line("sed", "did you mean 'seed'", kind=UsageError):
        recipe.change(sed=7)
    with one_line("seed", "(got -1)", kind=UsageError):
        recipe.change(seed=-1)


def test_equal_recipes_are_one_key() -> None:
    assert len({Recipe(), Recipe(), Recipe(seed=1), Recipe(options={"a": 1}), Recipe(options={"a": 1.0})}) == 3


@pytest.mark.parametrize(("field", "nearest"), [("token", "tokens"), ("Seed", "seed"), ("memory-budget", "memory_bud")])
def test_an_unknown_setting_names_the_nearest(field: str, nearest: str) -> None:
    with one_line("mine.toml", f"no such setting '{field}'", nearest, kind=UsageError):
        build_recipe({field: 1}, where="recipe mine.toml")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0),
        ("tokens", "many\nof them"),
        ("seed", -1),
        ("warmup", 1.5),
        ("weight_decay", float("nan")),
        ("max_grad_norm", 0.0),
        ("time_limit", 0),
        ("memory_budget", 0),
        ("max_length", 8),
        ("device", "tpu"),
        ("model", " "),
        ("topic", ""),
        ("options", 5),
        ("options", {"day": object()}),
        ("options", {"rank": [None]}),
    ],
)
def test_an_invalid_value_is_one_line_that_names_the_field(field: str, value: Any) -> None:
    with one_line("recipe mine.toml", f"{field}: ", "(got ", kind=UsageError):
        build_recipe({field: value}, where="recipe mine.toml")


def test_the_shipped_recipes_are_valid() -> None:
    names = shipped_recipes()
    assert {"quick", "oasst1-gpt2"} <= set(names)
    assert {read_recipe(name).name for name in names} == set(names)
    assert read_recipe("quick") == Recipe(tokens=40_000, effective_batch_size=1)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with one_line("no such recipe 'quik'", "did you mean 'quick'", kind=UsageError):
        read_recipe("quik")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"tokens = \n", "not valid TOML"),
        (b"tokens = 1\ntokens = 2\n", "not valid TOML"),
        (b"\xff", "cannot read recipe"),
        (b"tokens = 'many'\n", "tokens"),
        (b"[options]\nday = 2026-01-01\n", "options"),
        (b"tokns = 5\n", "did you mean 'tokens'"),
    ],
)
def test_a_bad_recipe_file_is_one_line(content: bytes, said: str) -> None:
    Path("mine.toml").write_bytes(content)
    with one_line("recipe mine.toml", said, kind=UsageError):
        read_recipe("mine.toml")


def test_a_missing_recipe_file_or_a_folder_is_one_line() -> None:
    with one_line("cannot read recipe none.toml", kind=UsageError):
        read_recipe("none.toml")
    with one_line("cannot read recipe ./", kind=UsageError):
        read_recipe("./")
