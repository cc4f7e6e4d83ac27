"""Models that differentiate inside forward: physics-informed networks, forces of an energy, and their losses."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, exact_gauss_newton, outputs_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

POINTS = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
SOURCE = -torch.sin(POINTS)


def net(inputs=1):
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 1))


class Second(nn.Module):
    """The second derivative u'' of a network u, in several ways."""

    def __init__(self):
        super().__init__()
        self.net = net()


class ByGrad(Second):
    def forward(self, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.sum(), x, create_graph=True)[0]


class ByDetachedInput(Second):
    def forward(self, x):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.sum(), x, create_graph=True)[0]


class ByEnabledGrad(Second):
    def forward(self, x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
            return torch.autograd.grad(slope.sum(), x, create_graph=True)[0]


class ByHessian(Second):
    def forward(self, x):
        return torch.func.vmap(torch.func.hessian(lambda z: self.net(z)[0]))(x)[:, :, 0]


class ByJacrev(Second):
    def forward(self, x):
        return torch.func.vmap(torch.func.jacrev(torch.func.jacrev(lambda z: self.net(z)[0])))(x)[:, :, 0]


class ByVjp(Second):
    def forward(self, x):
        def slope(z):
            value, pull = torch.func.vjp(self.net, z)
            return pull(torch.ones_like(value))[0]

        value, pull = torch.func.vjp(slope, x)
        return pull(torch.ones_like(value))[0]


class ByJvp(Second):
    def forward(self, x):
        def slope(z):
            return torch.func.jvp(self.net, (z,), (torch.ones_like(z),))[1]

        return torch.func.jvp(slope, (x,), (torch.ones_like(x),))[1]


SECOND = [ByGrad, ByDetachedInput, ByEnabledGrad, ByHessian, ByJacrev, ByVjp, ByJvp]


def second_by_hand(theta):
    """Write u'' of a tanh network out: u = Σ c tanh(w x + b) gives u'' = −2 Σ c w² t (1 − t²)."""
    w, b, c = theta[:6], theta[6:12], theta[12:18]
    t = torch.tanh(POINTS * w + b)
    return (-2 * c * w**2 * t * (1 - t**2)).sum(1, keepdim=True)


def mean_square(outputs, targets):
    return ((outputs - targets) ** 2).mean()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("split", [[20], [3, 11, 6]], ids=["one batch", "ragged batches"])
@pytest.mark.parametrize("kind", SECOND, ids=lambda kind: kind.__name__)
def test_a_network_that_differentiates_itself_has_the_derivatives_of_the_formula(kind, split):
    data = list(zip(POINTS.split(split), SOURCE.split(split), strict=True))
    loss = jo.ModelLoss(seeded(kind), mean_square, data[0] if len(data) == 1 else data)
    theta = loss.initial()
    assert_matches(loss, lambda t: mean_square(second_by_hand(t) + 0 * t[18], SOURCE))
    G = exact_gauss_newton(lambda t: second_by_hand(t) + 0 * t[18], lambda z: mean_square(z, SOURCE), theta)
    assert_near(loss.gauss_newton(theta).dense(), G)


POSITIONS, CHARGES = numbers(240, 8, 3, 2), numbers(241, 8, 3).abs() + 0.5
ENERGIES, FORCES = numbers(242, 8), numbers(243, 8, 3, 2)


class Energy(nn.Module):
    """The energy of a few charged particles, and forces as its negative slope; two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.net = net(7)

    def energy(self, positions, charges):
        gaps = (positions[:, :, None] - positions[:, None]).pow(2).sum(-1)
        features = torch.cat([gaps[:, [0, 0, 1], [1, 2, 2]], charges, positions.pow(2).sum((1, 2))[:, None]], 1)
        return self.net(features)[:, 0]

    def forward(self, positions, charges):
        positions = positions.detach().requires_grad_()
        energy = self.energy(positions, charges)
        (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return {"energy": energy, "forces": -slope}


class EnergyByFunc(Energy):
    def forward(self, positions, charges):
        def each(r, q):
            return self.energy(r[None], q[None])[0]

        slopes, energy = torch.func.vmap(torch.func.grad_and_value(each))(positions, charges)
        return {"energy": energy, "forces": -slopes}


def matched(outputs, targets):
    return mean_square(outputs["energy"], targets[0]) + 10 * mean_square(outputs["forces"], targets[1])


@pytest.mark.parametrize("kind", [Energy, EnergyByFunc], ids=lambda kind: kind.__name__)
def test_energies_and_forces_are_fitted_together(kind):
    model = seeded(kind)
    inputs, targets = (POSITIONS, CHARGES), (ENERGIES, FORCES)

    def true(theta):  # by differences of the energy no double autograd of forward's own is needed
        r = POSITIONS.clone().requires_grad_()
        w, b, c, d = theta.split([42, 6, 6, 1])
        gaps = torch.stack([(r[:, i] - r[:, j]).pow(2).sum(-1) for i, j in ((0, 1), (0, 2), (1, 2))], 1)
        features = torch.cat([gaps, CHARGES, r.pow(2).sum((1, 2))[:, None]], 1)
        energy = torch.tanh(features @ w.reshape(6, 7).mT + b) @ c + d
        (slope,) = torch.autograd.grad(energy.sum(), r, create_graph=True)
        return ((energy - ENERGIES) ** 2).mean() + 10 * ((-slope - FORCES) ** 2).mean()

    parts = [((POSITIONS[s], CHARGES[s]), (ENERGIES[s], FORCES[s])) for s in (slice(0, 5), slice(5, 8))]
    for data in ((inputs, targets), parts):
        assert_matches(jo.ModelLoss(model, matched, data), true)


class Contractive(nn.Module):
    """A classifier that returns, beside its logits, the size of its Jacobian."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        J = torch.func.vmap(torch.func.jacrev(self.net))(x)
        return self.net(x), J.pow(2).sum((1, 2))


def test_a_jacobian_penalty_inside_the_model_is_differentiated():
    X, T = numbers(244, 9, 3), labels_of(245, 9, 3)

    def penalized(outputs, targets):
        return functional.cross_entropy(outputs[0], targets) + 0.1 * outputs[1].mean()

    def true(theta):
        a, b, c, d = theta.split([12, 4, 12, 3])
        t, A, C = torch.tanh(X @ a.reshape(4, 3).mT + b), a.reshape(4, 3), c.reshape(3, 4)
        J = torch.einsum("oh,nh,hi->noi", C, 1 - t**2, A)
        return functional.cross_entropy(t @ C.mT + d, T) + 0.1 * J.pow(2).sum((1, 2)).mean()

    model = seeded(Contractive)
    for data in ((X, T), list(zip(X.split([2, 7]), T.split([2, 7]), strict=True))):
        assert_matches(jo.ModelLoss(model, penalized, data), true)


def test_a_model_that_takes_a_gradient_step_inside_is_differentiated_through_it():
    class Inner(nn.Module):
        """One inner step on each sample's own loss, as in meta-learning."""

        def __init__(self):
            super().__init__()
            self.start, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            code = torch.tanh(self.start(x))
            (slope,) = torch.autograd.grad(torch.logsumexp(self.head(code), 1).sum(), code, create_graph=True)
            return self.head(code - 0.5 * slope)

    X, T = numbers(246, 9, 3), labels_of(247, 9, 3)
    model = seeded(Inner)

    def true(theta):
        a, b, c, d = theta.split([12, 4, 12, 3])
        code, C = torch.tanh(X @ a.reshape(4, 3).mT + b), c.reshape(3, 4)
        slope = torch.softmax(code @ C.mT + d, 1) @ C
        return functional.cross_entropy((code - 0.5 * slope) @ C.mT + d, T)

    assert_matches(jo.ModelLoss(model, functional.cross_entropy, (X, T)), true)
    leaf = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert_near(functional.cross_entropy(outputs_at(model, leaf.requires_grad_(), X), T).detach(), true(leaf).detach())
