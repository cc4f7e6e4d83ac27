"""Covariant vectors and growth step by step."""

import json
import math

import numpy as np
import pytest
import torch
from systems import DOUBLE, GOLDEN, cat, henon, linear, network, twisted

import jvp_ops as jo


@pytest.fixture(scope="module")
def orbit():
    f, state = henon()
    return jo.Orbit(f, f.run(state, steps=100), steps=300)


@pytest.fixture(scope="module")
def found(orbit):
    return jo.covariant_vectors(orbit, k=2)


def line_angle(u, v):
    return float(torch.minimum((u - v).norm(), (u + v).norm()))


def test_those_of_the_cat_map_are_its_eigenvectors_everywhere():
    found = jo.covariant_vectors(jo.Orbit(*cat(), steps=120), k=2)
    vectors = torch.linalg.eigh(torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=DOUBLE))[1]
    for at_state in found.vectors:
        assert line_angle(at_state[:, 0], vectors[:, 1]) < 1e-13
        assert line_angle(at_state[:, 1], vectors[:, 0]) < 1e-13
    np.testing.assert_allclose(found.growth, np.tile([GOLDEN, -GOLDEN], (60, 1)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.angles[:, 0, 1], math.pi / 2, rtol=1e-13)
    assert (found.uncertainty < 1e-13).all()


def test_those_of_a_matrix_that_is_not_symmetric_are_its_right_eigenvectors():
    right = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 0.3]], dtype=DOUBLE)
    right = right / right.norm(dim=0)
    rates = torch.tensor([1.5, 1.0, 0.4], dtype=DOUBLE)
    f, state = linear(right @ torch.diag(rates) @ torch.linalg.inv(right))
    found = jo.covariant_vectors(jo.Orbit(f, state * 0, steps=400), k=3, at=[200])
    for j in range(3):
        assert line_angle(found.vectors[0, :, j], right[:, j]) < 1e-12
    cosine = float(right[:, 0] @ right[:, 1])
    assert abs(found.angles[0, 0, 1] - math.acos(cosine)) < 1e-12
    np.testing.assert_allclose(found.values, rates.log().numpy(), rtol=0, atol=1e-12)
    assert abs(found.least_angles[0] - math.acos(cosine)) < 1e-12


def test_the_jacobian_carries_each_vector_to_the_next_and_they_are_not_orthogonal(orbit, found):
    assert found.at.tolist() == list(range(75, 226))
    for i, t in enumerate(found.at[:-1].tolist()):
        image = orbit.map.jacobian(orbit[t]).apply(found.vectors[i])
        for j in range(2):
            assert line_angle(image[:, j] / image[:, j].norm(), found.vectors[i + 1, :, j]) < 1e-8
            assert abs(float(image[:, j].norm().log()) - found.growth[i, j]) < 1e-8
    assert found.angles[:, 0, 1].min() < 0.5


def test_their_mean_growth_is_the_exponents(found):
    assert (abs(found.values - [0.41922, -1.62319]) <= 4 * found.errors).all()
    assert (found.errors < 0.1).all()


def test_the_second_vector_is_found_by_the_inverse_map(orbit, found):
    """Backward in time the contracting direction is the growing one: any vector turns to it."""
    v = torch.tensor([1.0, 0.3], dtype=DOUBLE)
    for t in range(orbit.steps - 1, 149, -1):
        v = torch.linalg.solve(orbit.map.jacobian(orbit[t]).dense(), v)
        v = v / v.norm()
    assert line_angle(v, found.vectors[found.at.tolist().index(150), :, 1]) < 1e-10


def test_a_part_of_the_vectors_is_that_of_all(orbit, found):
    some = jo.covariant_vectors(orbit, k=2, at=[100, 80])
    assert some.at.tolist() == [80, 100]
    assert torch.equal(some.vectors[1], found.vectors[25])
    leading = jo.covariant_vectors(orbit, k=1, at=[100])
    assert line_angle(leading.vectors[0, :, 0], found.vectors[25, :, 0]) < 1e-10


def test_a_backward_transient_that_is_too_short_is_told(orbit):
    short = jo.covariant_vectors(orbit, k=2, forward_transient=100, backward_transient=1)
    assert short.uncertainty[1] > 1e-3
    assert any("backward transient of 1 steps is short" in note for note in short.notes)


def test_vectors_that_do_not_fit_are_refused_before_any_work(orbit):
    with pytest.raises(jo.MemoryBudgetError, match="at="):
        jo.covariant_vectors(orbit, k=2, max_memory=1000)


def test_a_singular_jacobian_has_no_covariant_vectors_of_zero_growth():
    orbit = jo.Orbit(linear([[2.0, 1.0], [4.0, 2.0]])[0], torch.zeros(2, dtype=DOUBLE), steps=20)
    with pytest.raises(jo.NonFiniteError, match="singular on vector 1"):
        jo.covariant_vectors(orbit, k=2)
    assert abs(jo.covariant_vectors(orbit, k=1).values[0] - math.log(4)) < 1e-13


def test_a_network_in_float32_has_them_too():
    data = jo.load_digits().subset(50)
    loss = jo.TwoLayerLoss(data.inputs, data.labels, hidden=2)
    orbit = jo.Orbit(jo.GradientDescent(loss, 0.5), loss.initial(rng=0), steps=16)
    found = jo.covariant_vectors(orbit, k=3, forward_transient=4, backward_transient=4)
    assert found.vectors.dtype == torch.float32
    assert found.vectors.shape == (9, orbit.parameters.size, 3)
    image = orbit.map.jacobian(orbit[6]).apply(found.vectors[2])
    torch.testing.assert_close(image / image.norm(dim=0), found.vectors[3], rtol=0, atol=1e-5)
    assert list(found.tensors(0, 1)) == ["W1", "b1", "W2", "b2"]


def test_a_result_prints_and_is_saved(found, tmp_path):
    lines = repr(found).splitlines()
    assert lines[0].startswith("2 covariant vectors at 151 states before steps 75 to 225, 600 products")
    assert len({len(line) for line in lines[1:3]}) == 1
    folder = found.save(tmp_path / "run")
    assert json.loads((folder / "run.json").read_text())["values"] == found.values.tolist()
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["vectors"].shape == (151, 2, 2)


def test_bad_input_is_told(orbit):
    for options, match in (
        ({"k": 3}, "k is at most"),
        ({"k": 1, "forward_transient": 200, "backward_transient": 100}, "leave none of the orbit's 300"),
        ({"k": 1, "forward_transient": -1}, "forward_transient"),
        ({"k": 1, "at": [3]}, "at must be different steps from 75 to 225"),
        ({"k": 1, "at": [100, 100]}, "at must be different"),
        ({"k": 1, "at": []}, "at must be different"),
    ):
        with pytest.raises(jo.InputError, match=match):
            jo.covariant_vectors(orbit, **options)


# --- growth step by step -----------------------------------------------------------------------------------------


def test_local_growth_of_a_frame_adds_up_to_the_determinant_and_averages_to_the_exponents(orbit):
    growth = jo.local_growth(orbit, 2)
    assert growth.shape == (300, 2)
    np.testing.assert_allclose(growth.sum(axis=1), math.log(0.3), rtol=0, atol=1e-12)
    f, state = orbit.map, orbit[0]
    spectrum = jo.lyapunov_spectrum(f, state, k=2, steps=300, interval=1)
    np.testing.assert_allclose(growth.mean(axis=0), spectrum.values, rtol=0, atol=1e-12)


def test_local_growth_of_one_vector_is_how_its_length_changes():
    orbit = jo.Orbit(*twisted(), steps=12)
    v = torch.randn(6, 1, dtype=DOUBLE)
    growth = jo.local_growth(orbit, v, start=2, stop=9)
    lengths = [float(v.norm())] + [float(orbit.jacobian(2, t).apply(v).norm()) for t in range(3, 10)]
    np.testing.assert_allclose(growth[:, 0], np.diff(np.log(lengths)), rtol=0, atol=1e-12)


def test_local_growth_of_covariant_vectors_is_what_their_coefficients_say(orbit, found):
    growth = jo.local_growth(orbit, found, stop=225)
    np.testing.assert_allclose(growth, found.growth, rtol=0, atol=1e-8)


def test_local_growth_of_a_network_is_below_that_of_its_hessian():
    f, theta = network(hidden=1)
    orbit = jo.Orbit(f, theta, steps=5)
    growth = jo.local_growth(orbit, 3)
    norms = [float(torch.linalg.matrix_norm(f.jacobian(orbit[t]).dense(), 2)) for t in range(5)]
    assert (np.exp(growth).max(axis=1) <= np.array(norms) * (1 + 1e-12)).all()
