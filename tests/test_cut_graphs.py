"""Steps and losses that cut autograd's graph are refused; jumps, kinks and odd sizes are not taken for a cut."""

import math

import numpy as np
import pytest
import torch
from cases import numbers, scalar
from oracles import assert_near, differences, exact

import jvp_ops as jo

LR = 0.1
A = torch.diag(torch.arange(1.0, 6.0).double())


def map_of(function, size, **options):
    return jo.FunctionMap(function, size=size, dtype="float64", **options)


def quartic(t):
    return (t**4).sum() / 4


# --- graphs that are cut -----------------------------------------------------------------------------------------


def by_optimizer(s):
    p = torch.nn.Parameter(s[:5].clone())
    optimizer = torch.optim.SGD([p], lr=LR)
    with torch.enable_grad():
        (p @ A @ p / 2).backward()
    optimizer.step()
    return torch.cat([p, s[5:] + 1])


def without_graph(s):
    with torch.enable_grad():
        t = s.detach().requires_grad_()
        (slope,) = torch.autograd.grad(quartic(t), t)
    return s - LR * slope


def by_item(s):
    return s / max(1.0, float(s.detach().norm()))


def by_numpy(s):
    return torch.cat([s[:3] * 2, torch.from_numpy(np.sin(s[3:].detach().numpy()))])


def by_data(s):
    return s * s.data


def half_without_gradients(s):
    with torch.no_grad():
        slow = s[3:] * s[:3]
    return torch.cat([s[:3] + slow, s[3:]])


def random(s):
    return s + torch.randn_like(s)


CUT = [by_optimizer, without_graph, by_item, by_numpy, by_data, half_without_gradients]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", CUT, ids=lambda f: f.__name__)
def test_a_step_that_cuts_the_graph_is_refused_unless_unchecked(step, dtype):
    if step is by_optimizer and dtype == "float32":
        pytest.skip("the step computes in float64")
    f, state = jo.FunctionMap(step, size=6, dtype=dtype), numbers(502, 6).to(getattr(torch, dtype))
    with pytest.raises(jo.InputError, match=r"(?s)second_derivatives"):
        f.jacobian(state)
    assert torch.equal(f(state), step(state).detach())
    unchecked = jo.FunctionMap(step, size=6, dtype=dtype, second_derivatives="unchecked")
    J = unchecked.jacobian(state)
    assert torch.equal(J.dense(), torch.autograd.functional.jacobian(step, state))
    assert any("unchecked" in note for note in jo.eigenpairs(J, k=1, which="LM").notes)


@pytest.mark.parametrize("step", CUT, ids=lambda f: f.__name__)
def test_such_steps_are_indeed_wrong(step):
    state = numbers(502, 6)
    true = differences(lambda s: step(s).detach(), state).mT
    assert (torch.autograd.functional.jacobian(step, state) - true).norm() > 0.01 * true.norm()


@pytest.mark.parametrize(
    "step", [lambda s: by_optimizer(s)[:5], lambda s: without_graph(s.detach()), lambda s: (s * 0.5).detach()]
)
def test_a_step_that_is_cut_off_altogether_is_refused(step):
    with pytest.raises(jo.InputError, match=r"autograd|second_derivatives"):
        map_of(step, 5).jacobian(numbers(503, 5))


def test_a_random_step_is_refused():
    with torch.random.fork_rng(devices=[]), pytest.raises(jo.InputError, match=r"(?i)random|second_derivatives"):
        map_of(random, 3).jacobian(numbers(504, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda t: quartic(t) + (t * t.detach()).sum(),
        lambda t: quartic(t) * float(t.detach().norm()),
        lambda t: (t**2 * torch.from_numpy(np.cos(t.detach().numpy()))).sum(),
    ],
    ids=["a detached factor", "a float", "numpy"],
)
def test_a_loss_that_cuts_the_graph_is_refused_unless_unchecked(function):
    theta = numbers(505, 4)
    loss = jo.FunctionLoss(function, size=4, dtype="float64")
    with pytest.raises(jo.InputError, match="second_derivatives"):
        loss.hessian(theta)
    unchecked = jo.FunctionLoss(function, size=4, dtype="float64", second_derivatives="unchecked")
    H = unchecked.hessian(theta)
    assert_near(H.dense(), exact(function, theta).hessian)
    assert any("unchecked" in note for note in jo.eigenpairs(H, k=1, which="LA").notes)


# --- what only looks wrong ---------------------------------------------------------------------------------------


def cat(s):
    return torch.remainder(torch.stack([2 * s[0] + s[1], s[0] + s[1]]), 1.0)


def tent(s):
    return torch.where(s < 0.5, 2 * s, 2 - 2 * s)


def steep(s):
    return torch.sin(1e4 * s)


def scaled(factor):
    return lambda s: factor * s.flip(0) + s


SOUND = {
    "a map modulo 1": (cat, torch.tensor([0.3, 0.6])),
    "a tent": (tent, torch.tensor([0.3, 0.7])),
    "a steep sine": (steep, torch.tensor([0.3, 0.7])),
    "a huge map": (scaled(1e20), torch.tensor([0.3, 0.7])),
    "a tiny map": (lambda s: 1e-20 * s**2, torch.tensor([0.3, 0.7])),
    "a huge state": (scaled(0.5), torch.tensor([3e15, -1e15])),
    "a tiny state": (lambda s: s + s**2, torch.tensor([3e-15, -1e-15])),
    "a state of many sizes": (lambda s: s * s.sin(), torch.tensor([1e-10, 1.0, 1e6])),
    "a fixed point at zero": (lambda s: s - s**3, torch.zeros(2)),
    "relu": (lambda s: torch.relu(s) * s.sum(), torch.tensor([0.3, -0.7, 0.0])),
    "a constant part": (lambda s: torch.cat([s[:1] * s[1:], torch.ones_like(s[1:])]), torch.tensor([0.3, 0.7])),
    "a step counter": (lambda s: torch.cat([s[:1] * 0.5, s[1:] + 1]), torch.tensor([0.3, 12.0])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SOUND)
def test_jumps_kinks_and_sizes_are_not_taken_for_a_cut_graph(name, dtype):
    step, state = SOUND[name]
    state = state.to(dtype)
    J = jo.FunctionMap(step, size=len(state), dtype=dtype).jacobian(state)
    assert torch.equal(J.dense(), torch.autograd.functional.jacobian(step, state))
    assert not any("unchecked" in note for note in jo.eigenpairs(J, k=1, which="LM").notes)


def test_the_cat_map_has_the_exponents_of_its_matrix():
    spectrum = jo.lyapunov_spectrum(map_of(cat, 2), torch.tensor([0.3, 0.6]).double(), 2, steps=200, transient=20)
    golden = math.log((3 + math.sqrt(5)) / 2)
    np.testing.assert_allclose(spectrum.values, [golden, -golden], atol=1e-6)


@pytest.mark.parametrize("kind", [jo.FunctionLoss, jo.FunctionMap])
def test_second_derivatives_are_checked_or_unchecked(kind):
    for given in ("maybe", None, True):
        with pytest.raises(jo.InputError, match="second_derivatives"):
            kind(scalar, size=9, second_derivatives=given)
