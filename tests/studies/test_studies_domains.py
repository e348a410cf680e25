"""Search domains as text and as objects."""

import pytest

from kobai.optim import CONFIGS, default_space, parse_domain
from kobai.optim.domains import Choice, Fixed, Integer, Linear, Log, When
from kobai.studies.search import check_space, grid

DOMAINS = [
    Log(1e-4, 1.0),
    Linear(-0.5, 0.99),
    Integer(1, 100),
    Integer(1, 100, log=True),
    Choice((0.9, 0.99, 0.999)),
    Choice(("exact", "sampled")),
    Choice((True, None, 3)),
    Fixed(0.25),
    Fixed("sampled"),
    When("labels", ("exact",), Log(1e-3, 1.0)),
    When("momentum", (0.0, 0.9), Choice((1, 2))),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_text_and_object_are_inverse(domain):
    assert parse_domain(str(domain)) == domain


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("log(1e-4, 1)", Log(1e-4, 1.0)),
        (" linear( 0 ,.99 ) ", Linear(0.0, 0.99)),
        ("choice(exact, sampled)", Choice(("exact", "sampled"))),
        ("0.9", Fixed(0.9)),
        ("sampled", Fixed("sampled")),
        ("integer(2, 64, log)", Integer(2, 64, log=True)),
    ],
)
def test_text_as_people_write_it(text, domain):
    assert parse_domain(text) == domain


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("log(0, 1)", "starts above zero"),
        ("log(1, 1e-4)", "smaller one first"),
        ("linear(1)", "two numbers"),
        ("integer(1.5, 3)", "whole"),
        ("integer(0, 3, log)", "1 or more"),
        ("choice()", "at least one"),
        ("choice(1, 1)", "twice"),
        ("when(a, (1,), fixed(2))", "interval or a choice"),
        ("uniform(0, 1)", "no search domain"),
        ("__import__('os')", "no search domain"),
    ],
)
def test_wrong_text_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse_domain(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_optimizer_has_a_space_that_its_settings_accept(name):
    space = default_space(name)
    assert space, "nothing to search"
    fields = CONFIGS[name]()
    for field, domain in space.items():
        assert hasattr(fields, field)
        ends = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in ends:
            CONFIGS[name](**{field: value})


def test_a_grid_has_the_ends_and_equal_steps():
    points = grid(
        {"a": Log(1e-4, 1.0), "b": Linear(0.0, 1.0), "c": Integer(1, 3), "d": Choice(("x",))}
    )
    assert points["a"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert points["b"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert points["c"] == [1, 2, 3]
    with pytest.raises(ValueError, match="condition"):
        grid({"a": When("b", (1,), Log(0.1, 1.0))})


def test_a_condition_must_follow_what_it_depends_on():
    late = {"a": When("b", (1,), Log(0.1, 1.0)), "b": Choice((1, 2))}
    with pytest.raises(ValueError, match="not a hyperparameter before it"):
        check_space(late)
    check_space({"b": late["b"], "a": late["a"]})
    with pytest.raises(ValueError, match="nothing to search"):
        check_space({"a": Fixed(1.0)})
