"""Orbits: the states along training, kept or computed again, and the ordered product of their Jacobians."""

import json
import threading

import numpy as np
import pytest
import torch
from systems import DOUBLE, dense_product, henon, linear, network, twisted

import jvp_ops as jo
from jvp_ops.dynamics._states import DiskStates


@pytest.fixture(scope="module")
def orbit():
    return jo.Orbit(*twisted(), steps=40)


def counted(f):
    """Count the steps that a map takes."""
    calls = []
    inner = f.function
    f.function = lambda s: (calls.append(1), inner(s))[1]
    return calls


def test_its_states_are_those_of_the_map(orbit):
    state = orbit[0]
    for t in range(40):
        assert torch.equal(orbit[t], state)
        state = orbit.map(state)
    assert torch.equal(orbit[-1], state)
    assert len(orbit) == 41
    assert orbit.stride == 1


def test_a_state_that_is_changed_by_its_user_does_not_change_the_orbit(orbit):
    before = orbit[3]
    orbit[3].zero_()
    assert torch.equal(orbit[3], before)


def test_states_computed_again_within_a_budget_are_the_same_bit_for_bit(orbit):
    small = jo.Orbit(*twisted(), steps=40, max_memory=6 * 8 * 14)
    assert small.stride > 3
    for t in [*range(41), *range(40, -1, -1), 7, 33, 2]:
        assert torch.equal(small[t], orbit[t])
    V = torch.randn(6, 3, dtype=DOUBLE)
    assert torch.equal(small.jacobian().apply_adjoint(V), orbit.jacobian().apply_adjoint(V))


def test_a_walk_backward_costs_at_most_one_more_forward_pass():
    f, state = twisted()
    calls = counted(f)
    small = jo.Orbit(f, state, steps=40, max_memory=6 * 8 * 14)
    calls.clear()
    for t in range(40, -1, -1):
        _ = small[t]
    assert 0 < len(calls) <= 40


def test_a_budget_below_the_snapshots_is_refused_with_both_sizes():
    with pytest.raises(jo.MemoryBudgetError, match=r"672 B, more than the 600 B .* folder="):
        jo.Orbit(*twisted(), steps=40, max_memory=600)


def test_a_map_that_is_not_deterministic_is_found_out():
    _, state = twisted()

    def noisy(s):
        return torch.sin(s) + 1e-9 * torch.rand(6, dtype=DOUBLE)

    f = jo.FunctionMap(noisy, size=6, dtype=DOUBLE, second_derivatives="unchecked")  # whose check finds it earlier
    small = jo.Orbit(f, state, steps=40, max_memory=6 * 8 * 14)
    with pytest.raises(jo.DataError, match="not deterministic"):
        _ = small[1]


def test_its_jacobian_is_the_dense_product_and_its_adjoint_the_dense_transpose(orbit):
    for start, stop in ((0, 40), (3, 10), (39, 40)):
        product = dense_product(orbit, start, stop)
        P = orbit.jacobian(start, stop)
        assert isinstance(P, jo.JacobianOperator)
        V = torch.randn(6, 4, dtype=DOUBLE)
        torch.testing.assert_close(P.apply(V), product @ V, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(P.apply_adjoint(V), product.T @ V, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(P.T.dense(), product.T, rtol=1e-12, atol=1e-14)


def test_the_adjoint_run_forward_in_time_would_be_another_matrix(orbit):
    wrong = torch.eye(6, dtype=DOUBLE)
    for t in range(40):
        wrong = orbit.map.jacobian(orbit[t]).dense().T @ wrong
    right = orbit.jacobian().apply_adjoint(torch.eye(6, dtype=DOUBLE))
    assert (right - wrong).norm() > 0.1 * right.norm()


def test_the_product_and_its_adjoint_obey_their_identity(orbit):
    P = orbit.jacobian()
    u, v = torch.randn(2, 6, dtype=DOUBLE)
    scale = u.norm() * v.norm() * torch.linalg.matrix_norm(P.dense(), 2)
    assert abs(u @ P.apply(v) - P.apply_adjoint(u) @ v) <= 1e-14 * scale


def test_a_product_of_one_step_is_that_steps_own_operator():
    orbit = jo.Orbit(*network(), steps=3)
    assert orbit.jacobian(1, 2).symmetric
    assert not orbit.jacobian(0, 2).symmetric


def test_the_number_of_the_step_reaches_the_map():
    f, state = twisted()
    seen = []

    class Numbered:
        parameters, dtype, device = f.parameters, f.dtype, f.device
        identity = staticmethod(f.identity)

        def __call__(self, state, step=0):
            return f(state) * (1 + step)

        def jacobian(self, state, step=0):
            seen.append(step)
            return f.jacobian(state)

    orbit = jo.Orbit(Numbered(), state, steps=2, first=5)
    torch.testing.assert_close(orbit[1], 6 * f(state))
    seen.clear()
    orbit.jacobian().apply_adjoint(state)
    assert seen[-2:] == [6, 5]


def test_a_run_that_diverges_keeps_its_finite_part():
    f = jo.GradientDescent(jo.FunctionLoss(lambda x: x[0] ** 4, size=1, dtype="float64"), lr=1.0)
    with pytest.raises(jo.NonFiniteError, match=r"NaN or Inf at step \d+ .*diverges") as caught:
        jo.Orbit(f, torch.tensor([1.0], dtype=DOUBLE), steps=100, max_memory="1MB")
    part = caught.value.partial
    assert 3 < part.steps < 20
    assert f"step {part.steps} " in str(caught.value)
    assert torch.isfinite(part[-1]).all()
    assert not torch.isfinite(f(part[-1])).all()


def test_a_product_that_overflows_says_at_which_step():
    orbit = jo.Orbit(linear([[1e200]])[0], torch.zeros(1, dtype=DOUBLE), steps=5)
    with pytest.raises(jo.NonFiniteError, match="at step 1"):
        orbit.jacobian().apply(torch.ones(1, dtype=DOUBLE))


# --- on disk -----------------------------------------------------------------------------------------------------


def test_an_orbit_on_disk_is_the_same_and_is_opened_again_without_computing(orbit, tmp_path):
    on_disk = jo.Orbit(*twisted(), steps=40, folder=tmp_path / "orbit")
    assert all(torch.equal(on_disk[t], orbit[t]) for t in range(41))
    f, state = twisted()
    calls = counted(f)
    f.identity = twisted()[0].identity  # the counter changes the code, not the map
    with pytest.raises(jo.DataError, match="another orbit"):
        jo.Orbit(f, state, steps=41, folder=tmp_path / "orbit")
    calls.clear()
    again = jo.Orbit(f, state, steps=40, folder=tmp_path / "orbit")
    assert len(calls) <= 2  # one for the fingerprint, one to see that it is this map
    assert all(torch.equal(again[t], orbit[t]) for t in range(41))
    assert sorted(p.name for p in (tmp_path / "orbit").iterdir()) == ["orbit.json", "states.npy"]
    assert np.load(tmp_path / "orbit" / "states.npy").shape == (41, 6)


def test_an_orbit_on_disk_of_another_map_or_damaged_is_refused(tmp_path):
    f, state = henon()
    jo.Orbit(f, state, steps=9, folder=tmp_path)
    with pytest.raises(jo.DataError, match="another orbit"):
        jo.Orbit(f, state + 1e-3, steps=9, folder=tmp_path)
    with pytest.raises(jo.DataError, match="its first step differs"):
        jo.Orbit(henon(a=1.3)[0], state, steps=9, folder=tmp_path)  # a is held where no fingerprint sees it
    with pytest.raises(jo.DataError, match="its first step differs"):
        jo.Orbit(henon(a=1.40001)[0], state, steps=9, folder=tmp_path)
    content = (tmp_path / "states.npy").read_bytes()
    (tmp_path / "states.npy").write_bytes(content[:-3] + b"abc")
    with pytest.raises(jo.DataError, match="damaged"):
        jo.Orbit(f, state, steps=9, folder=tmp_path)


def test_a_diverging_orbit_on_disk_diverges_again_when_it_is_opened(tmp_path):
    f, state = linear([[1e100]])
    for _ in range(2):
        with pytest.raises(jo.NonFiniteError, match=r"at step 3") as caught:
            jo.Orbit(f, state, steps=9, folder=tmp_path)
        assert caught.value.partial.steps == 3
    assert json.loads((tmp_path / "orbit.json").read_text())["steps"] == 3


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(jo.InputError, match="not empty"):
        jo.Orbit(*henon(), steps=3, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interruption_at_the_very_end_leaves_an_empty_folder(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DiskStates, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jo.Orbit(*henon(), steps=3, folder=tmp_path / "orbit")
    monkeypatch.undo()
    assert len(jo.Orbit(*henon(), steps=3, folder=tmp_path / "orbit")) == 4


def test_counts_may_be_numpys(tmp_path):
    orbit = jo.Orbit(*henon(), steps=np.int64(5), first=np.int64(2), folder=tmp_path / "orbit")
    start, stop = np.arange(1, 3)
    assert jo.local_growth(orbit, 1, start=start, stop=stop).shape == (1, 1)
    assert len(jo.finite_time_exponents(orbit, 1, oversampling=np.int64(1))) == 1


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_told(orbit):
    f, state = henon()
    for bad in (0, -1, 1.5, True):
        with pytest.raises(jo.InputError, match="steps must be an integer"):
            jo.Orbit(f, state, bad)
    with pytest.raises(jo.InputError, match="first"):
        jo.Orbit(f, state, 3, first=-1)
    with pytest.raises(jo.InputError, match="shape"):
        jo.Orbit(f, torch.ones(3, dtype=DOUBLE), 3)
    for function in (jo.TangentSystem, jo.Orbit):
        with pytest.raises(jo.InputError, match=r"f must be a map such as GradientDescent .* not function"):
            function(lambda s: s, state, 3)
    for analysis in (jo.finite_time_exponents, jo.covariant_vectors, jo.local_growth):
        with pytest.raises(jo.InputError, match="orbit must be an Orbit, not FunctionMap"):
            analysis(f, 2)
    for start, stop in ((3, 3), (5, 2), (0, 41), (-1, 3), (0.0, 3)):
        with pytest.raises(jo.InputError, match=r"0 ≤ start < stop ≤ 40"):
            orbit.jacobian(start, stop)
    with pytest.raises(IndexError):
        _ = orbit[41]
    with pytest.raises(jo.InputError, match="one step"):
        _ = orbit[1:3]


def test_threads_that_read_one_orbit_get_the_states_that_they_ask_for():
    f, start = jo.FunctionMap(lambda x: torch.sin(x.roll(1)) + x * 0.5, size=200), torch.linspace(0, 1, 200)
    whole, orbit = jo.Orbit(f, start, 60), jo.Orbit(f, start, 60, max_memory=26 * 800)
    assert orbit.stride > 1
    wrong = []

    def read(seed):
        for t in np.random.default_rng(seed).integers(0, 61, 150):
            if not torch.equal(orbit[int(t)], whole[int(t)]):
                wrong.append(t)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
