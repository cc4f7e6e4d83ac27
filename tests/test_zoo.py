"""Models, losses and data as people have them: right or refused, as was decided before trying, and never wrong.

The oracle is the user's own training loss on the user's own model and its backward; see zoo_oracle.py. The first test
does not use the package at all.
"""

import pytest
from zoo import ENTRIES
from zoo_entry import EITHER, REFUSED, RIGHT
from zoo_judge import judge
from zoo_oracle import FAULTS, Oracle, gradient_fault, norm, relative


def chosen(*expected):
    found = [entry for entry in ENTRIES if entry.expected in expected]
    return pytest.mark.parametrize("entry", found, ids=lambda entry: entry.name.replace(" ", "-"))


@chosen(RIGHT, EITHER)
def test_the_oracle_is_consistent(entry):
    oracle = Oracle(entry.make())
    case = oracle.case
    for place in oracle.places():
        assert norm(oracle.gradient(place)) > 1e-3, "a loss that does not move tests nothing"
        assert gradient_fault(oracle, place) < max(1e-6, 1e3 * case.value_error)
        v = oracle.noise(9)
        coarse, fine = (oracle.product(place, v, step=case.step * factor) for factor in (2, 1))
        assert norm(fine) > 1e-3, "a Hessian of zero tests nothing"
        assert relative(coarse, fine) < case.product_error


@chosen(REFUSED)
def test_what_is_refused_has_the_fault_that_is_named(entry):
    oracle = Oracle(entry.make())
    assert FAULTS[entry.fault](oracle, oracle.start()) > oracle.case.fault


@chosen(RIGHT)
def test_what_can_be_computed_is_right_in_every_form_of_the_data(entry):
    for form in entry.make().forms:
        assert str(judge(entry, form)) == "right", form


@chosen(REFUSED)
def test_what_has_no_hessian_is_refused(entry):
    for form in entry.make().forms:
        assert judge(entry, form).kind == "refused", form


@chosen(EITHER)
def test_what_torch_cannot_differentiate_twice_is_right_or_refused(entry):
    oracle = Oracle(entry.make())
    lacking = FAULTS[entry.fault](oracle, oracle.start()) > oracle.case.fault
    allowed = ("right", "refused") if lacking else ("right",)  # a later torch may have mended it
    for form in entry.make().forms:
        assert judge(entry, form).kind in allowed, form
