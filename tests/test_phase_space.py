"""Jacobians in phase space: their blocks, and the identities that each optimizer's Jacobian obeys exactly."""

import math

import numpy as np
import pytest
import torch
from cases import MODULES, TWO_LAYER, numbers
from optimizers import BETA, CLIP, DAMPENING, DECAY, EPS, LR, OPTIMIZERS, SQUARES

import jvp_ops as jo
from jvp_ops.linear._coupling import roots
from jvp_ops.store import fingerprint

PROBLEM = TWO_LAYER["two classes"]
P = len(PROBLEM.theta())
EYE = torch.eye(P, dtype=torch.float64)


def at(name, step=2):
    """Build a map, a state, and the dense Jacobian there."""
    f = OPTIMIZERS[name].make(PROBLEM.loss())
    state = OPTIMIZERS[name].state(PROBLEM.theta())
    return f, state, f.jacobian(state, step).dense()


def bowl(h):
    """Make a quadratic of curvatures h."""
    scales = torch.as_tensor(h, dtype=torch.float64).reshape(-1)
    return jo.FunctionLoss(lambda x: (scales * x**2).sum() / 2, size=len(scales), dtype="float64")


def eigenvalues_of(A):
    return np.linalg.eigvals(A.numpy())


def same_numbers(actual, expected, tolerance=1e-12):
    """Compare two lists of complex numbers, in whatever order."""
    left = list(np.ravel(expected))
    for z in np.ravel(actual):
        nearest = min(range(len(left)), key=lambda i: abs(left[i] - z))
        assert abs(left.pop(nearest) - z) <= tolerance
    assert left == []


def test_blocks_are_named_by_group_and_by_part():
    f, state, dense = at("adam")
    A = f.jacobian(state, 2)
    assert A.rows.names[:5] == ("theta.W1", "theta.b1", "theta.W2", "theta.b2", "m.W1")
    assert A.rows["v.b2"].stop == 3 * P
    theta, v, W1, W2 = slice(0, P), slice(2 * P, 3 * P), range(12), range(15, 21)
    for rows, columns, expected in [
        ("v", "theta", dense[v, theta]),
        ("theta", "m", dense[theta, P : 2 * P]),
        (["theta", "v"], "m.W1", dense[np.r_[theta, v]][:, [P + i for i in W1]]),
        ("v.W1", "theta.W2", dense[v, theta][W1][:, W2]),
        ("*.b1", "theta.b1", dense[[start + i for start in (0, P, 2 * P) for i in (12, 13, 14)], 12:15]),
    ]:
        torch.testing.assert_close(A.block(rows, columns).dense(), expected, rtol=0, atol=1e-14)
    assert torch.equal(f.theta(state), PROBLEM.theta())


def test_a_module_of_a_model_is_a_group_but_an_exact_name_comes_first():
    H = MODULES["perceptron"].loss().hessian(MODULES["perceptron"].theta())
    assert H.block("0", "2").rows.names == ("0.weight", "0.bias")
    assert torch.equal(H.block("0", "2").dense(), H.block("0.*", "2.*").dense())
    layout = jo.Parameters.of({"a": (1,), "a.b": (2,), "a.b.c": (3,), "ab": (4,)})
    assert [entry.name for entry in layout.find("a")] == ["a"]
    assert [entry.name for entry in layout.find("a.b")] == ["a.b"]
    assert [entry.name for entry in layout.find("a*")] == ["a", "a.b", "a.b.c", "ab"]
    assert [e.name for e in jo.Parameters.of({"a.b.c": (1,), "a.b.d": (1,), "ab": (1,)}).find("a.b")] == [
        "a.b.c",
        "a.b.d",
    ]
    with pytest.raises(jo.InputError, match="no parameter is named 'c'"):
        layout.find("c")


@pytest.mark.parametrize("options", [{}, {"dampening": DAMPENING, "weight_decay": DECAY}], ids=["plain", "with all"])
def test_heavy_ball_is_conformally_symplectic(options):
    f = jo.HeavyBall(PROBLEM.loss(), LR, BETA, **options)
    state = OPTIMIZERS["heavy ball"].state(PROBLEM.theta())
    J = f.jacobian(state).dense()
    omega = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double(), EYE)
    torch.testing.assert_close(J.mT @ omega @ J, BETA * omega, rtol=0, atol=1e-14)
    assert math.isclose(float(torch.linalg.slogdet(J)[1]), P * math.log(BETA), rel_tol=1e-12)
    steps, product = 5, torch.eye(2 * P, dtype=torch.float64)
    for number in range(steps):
        product = f.jacobian(state, number).dense() @ product
        state = f(state, number)
    logs = torch.linalg.svdvals(product).log()
    torch.testing.assert_close(logs + logs.flip(0), torch.full_like(logs, steps * math.log(BETA)), rtol=0, atol=1e-11)
    assert float(logs.max() - logs.min()) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: jo.HeavyBall(loss, LR, BETA),
        lambda loss: jo.HeavyBall(loss, LR, BETA, dampening=DAMPENING, weight_decay=DECAY),
        lambda loss: jo.HeavyBall(loss, LR, 0.0, dampening=DAMPENING),
        lambda loss: jo.HeavyBall(loss, LR, -0.3),
        lambda loss: jo.Nesterov(loss, LR, BETA),
        lambda loss: jo.Nesterov(loss, lambda step: LR * (step == 2), BETA, weight_decay=DECAY),
        lambda loss: jo.GradientDescent(loss, LR, weight_decay=DECAY),
    ],
)
def test_eigenvalues_follow_from_those_of_the_hessian(make):
    h = [-3.0, -0.5, 0.0, 0.25, 2.0, 7.0, 30.0]
    f = make(bowl(h))
    J = f.jacobian(f.initial(torch.ones(7, dtype=torch.float64)), 2).dense()
    expected = f.phase_space_eigenvalues(h, 2)
    assert expected.shape == (7,) if isinstance(f, jo.GradientDescent) else (7, 2)
    same_numbers(eigenvalues_of(J), expected)
    network = make(PROBLEM.loss())
    theta, spectrum = PROBLEM.theta(), torch.linalg.eigvalsh(PROBLEM.H())
    J = network.jacobian(network.initial(theta), 2).dense()
    traces = [float(torch.trace(torch.linalg.matrix_power(J, power))) for power in (1, 2, 3)]
    mu = network.phase_space_eigenvalues(spectrum, 2)
    np.testing.assert_allclose([(mu**power).sum() for power in (1, 2, 3)], traces, rtol=1e-12)


def test_heavy_ball_is_defective_where_its_two_eigenvalues_meet():
    f = jo.HeavyBall(bowl((1 - math.sqrt(0.25)) ** 2 / 0.5), 0.5, 0.25)
    J = f.jacobian(f.initial(torch.ones(1, dtype=torch.float64))).dense()
    np.testing.assert_array_equal(f.phase_space_eigenvalues([0.5]), [[0.5, 0.5]])
    N = J - 0.5 * torch.eye(2, dtype=torch.float64)
    assert torch.equal(N @ N, torch.zeros(2, 2, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(N)) == 1


def test_small_roots_keep_their_digits_and_pairs_their_order():
    big, small = roots(np.array([1e9]), np.array([0.5]))[0]
    assert math.isclose(small.real, 5e-10, rel_tol=1e-15)
    assert math.isclose(big.real, 1e9, rel_tol=1e-15)
    np.testing.assert_array_equal(roots(np.array([0.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.0])).imag.T[0], [1, 1, 0])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda loss: jo.GradientDescent(loss, 0.5), 4),
        (lambda loss: jo.GradientDescent(loss, 0.5, weight_decay=0.5), 3.5),
        (lambda loss: jo.HeavyBall(loss, 0.5, 0.5), 6),
        (lambda loss: jo.HeavyBall(loss, 0.5, 0.5, dampening=0.5, weight_decay=0.25), 11.75),
        (lambda loss: jo.HeavyBall(loss, 0.5, 0, dampening=0.5), 4),
        (lambda loss: jo.Nesterov(loss, 0.5, 0.5), 3),
        (lambda loss: jo.Nesterov(loss, lambda step: 0.5, 0.5, weight_decay=0.25), 2.75),
    ],
)
def test_at_the_threshold_an_eigenvalue_passes_minus_one(make, expected):
    assert math.isclose(make(bowl(1.0)).threshold(), expected)
    for change, stable in ((0.999, True), (1.0, None), (1.001, False)):
        f = make(bowl(expected * change))
        mu = eigenvalues_of(f.jacobian(f.initial(torch.ones(1, dtype=torch.float64))).dense())
        assert abs(mu.real.min() + 1) < 1e-12 if stable is None else (np.abs(mu).max() < 1) == stable


@pytest.mark.parametrize("step", [0, 1000])
@pytest.mark.parametrize(
    "make",
    [
        lambda loss: jo.RMSProp(loss, LR, SQUARES, eps=EPS, weight_decay=DECAY),
        lambda loss: jo.Adam(loss, LR, (BETA, SQUARES), eps=EPS, weight_decay=DECAY),
        lambda loss: jo.AdamW(loss, LR, (BETA, SQUARES), eps=EPS, weight_decay=DECAY),
    ],
)
def test_adaptive_thresholds_are_of_the_preconditioned_hessian(make, step):
    """At a minimum g = m = 0, so v does not act on θ and the rest is linear."""

    def state_of(f):
        state = f.initial(torch.zeros(1, dtype=torch.float64))
        state[-1] = 4.0
        return state

    f = make(bowl(1.0))
    h = f.threshold(step) / f.preconditioner(state_of(f), step).item()
    h -= 0 if isinstance(f, jo.AdamW) else DECAY
    g = make(bowl(h))
    mu = eigenvalues_of(g.jacobian(state_of(g), step).dense())
    assert abs(mu.real.min() + 1) < 1e-12


def test_at_a_rate_of_zero_nothing_is_unstable():
    loss = bowl(1.0)
    maps = [jo.HeavyBall(loss, 0, 0.5), jo.Nesterov(loss, 0, 0.5), jo.Adam(loss, 0), jo.RMSProp(loss, 0)]
    assert [f.threshold() for f in [*maps, jo.GradientDescent(loss, 0)]] == [math.inf] * 5


def test_determinants_are_those_of_the_closed_forms():
    H = PROBLEM.H()
    h = torch.linalg.eigvalsh(H)
    known = {
        "nesterov": (BETA * (1 - LR * (h + DECAY))).log().sum(),
        "adam": P * math.log(BETA * SQUARES),
        "adam clipped": P * math.log(BETA * SQUARES),
        "adamw": P * math.log(BETA * SQUARES * (1 - LR * DECAY)),
    }
    f, state, _ = at("rmsprop")
    root = f.preconditioner(state, 2).sqrt()
    preconditioned = torch.linalg.eigvalsh(root[:, None] * (H + DECAY * EYE) * root)
    assert float(root.max() / root.min()) > 1.1
    known["rmsprop"] = P * math.log(SQUARES) + (1 - LR * preconditioned).log().sum()
    for name, expected in known.items():
        sign, log = torch.linalg.slogdet(at(name)[2])
        assert sign == 1
        assert math.isclose(float(log), float(expected), rel_tol=1e-11), name


def test_active_clipping_takes_the_gradients_direction_out():
    f, theta, J = at("clipped descent")
    g = f.loss.gradient(theta)
    norm = float(g.norm())
    assert norm > CLIP
    unit = g / norm
    scale = LR * CLIP / (norm + 1e-6)
    shrunk = EYE - norm / (norm + 1e-6) * torch.outer(unit, unit)
    torch.testing.assert_close(J, EYE - scale * shrunk @ PROBLEM.H(), rtol=0, atol=1e-14)
    torch.testing.assert_close(unit @ J, unit, rtol=0, atol=1e-6)
    assert (J @ unit - unit).norm() > 1e-3  # only from the left


def test_heavy_ball_with_a_negative_momentum_is_the_henon_map():
    loss = jo.FunctionLoss(lambda x: (0.7 * x**2 / 2 - x + 1.4 * x**3 / 3).sum(), size=1, dtype="float64")
    f = jo.HeavyBall(loss, 1.0, -0.3)
    x, y, seen = 0.1, 0.2, []
    start = torch.tensor([x, (y / 0.3) - x], dtype=torch.float64)  # v = x₋₁ − x, y = 0.3 x₋₁
    f.run(start, steps=10, callback=lambda _, state: seen.append(float(state[0])))
    for value in seen:
        x, y = 1 - 1.4 * x**2 + y, 0.3 * x
        assert math.isclose(value, x, rel_tol=1e-9)
    assert math.isclose(float(f.jacobian(start).dense().det()), -0.3)


def test_products_in_a_given_order_are_adjoint_over_several_steps():
    f, state, _ = at("adam")
    operators = []
    for number in range(4):
        operators.append(f.jacobian(state, number))
        state = f(state, number)
    v, u = numbers(1, 3 * P), numbers(2, 3 * P)
    forward, backward = v, u
    for A in operators:
        forward = A.apply(forward)
    for A in reversed(operators):
        backward = A.apply_adjoint(backward)
    assert math.isclose(float(u @ forward), float(backward @ v), rel_tol=1e-11)


def test_identities_name_all_that_a_matrix_depends_on():
    loss, theta = PROBLEM.loss(), PROBLEM.theta()

    def of(f, step=0, theta=theta):
        assert f.identity()["loss"] == loss.identity()
        fingerprint(f.identity())  # JSON-able
        return fingerprint(f.jacobian(f.initial(theta), step).identity())

    def heavy(lr=0.5, momentum=0.5, **options):
        return jo.HeavyBall(loss, lr, momentum, **options)

    maps = [heavy(), heavy(lr=0.25), heavy(momentum=0.25), heavy(dampening=0.5), heavy(weight_decay=0.5)]
    maps += [heavy(clip=0.5), jo.Nesterov(loss, 0.5, 0.5), jo.AdamW(loss, 0.5)]
    found = [of(f) for f in maps] + [of(jo.Adam(loss, 0.5), step) for step in (0, 1)]
    assert len(set(found)) == 10
    assert of(heavy()) == of(heavy(), step=3) == of(heavy(lr=lambda step: 0.5)) == found[0]
    assert of(heavy(), theta=2 * theta) != found[0]
    moved = [heavy().jacobian(torch.cat([theta, v])).identity() for v in (0 * theta, theta)]
    assert moved[0] != moved[1]


def test_a_schedule_is_named_by_its_code_and_what_it_closes_over():
    def closed(rate):
        return lambda step: rate

    def default(rate):
        return lambda step, rate=rate: rate

    def of(lr):
        return fingerprint(jo.GradientDescent(PROBLEM.loss(), lr).identity())

    class Milestones:
        def __init__(self, *at):
            self.at = at

        def __call__(self, step):
            return 0.5 * 0.1 ** sum(step >= at for at in self.at)

        def rate(self, step):
            return self(step)

    def wrapped(schedule):
        return lambda step: schedule(step)

    steps = [Milestones(at) for at in (5, 900, 1024, 2000)]
    late = [of(schedule) for one in steps for schedule in (one, wrapped(one))]
    assert len(set(late)) == 8
    assert of(Milestones(900)) == late[2]
    assert of(Milestones(5).rate) != of(Milestones(900).rate)
    rates = [0.5] * 50
    assert of(lambda step: rates[step]) == of(lambda step: rates[step])  # it ends, which is part of what it is
    found = [of(make(rate)) for make in (closed, default) for rate in (0.5, 0.25)]
    assert len({*found, of(0.5), of([0.5].__getitem__)}) == 6
    assert of(closed(0.5)) == found[0]
