"""Products are derivatives of the gradient that training uses, or they are refused, or they say that nobody checked."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, differences, outputs_at, theta_of, training_gradient, weights_at
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

import jvp_ops as jo

X, T = numbers(400, 24, 5), labels_of(401, 24, 3)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return -slope / 2


class Sign(torch.autograd.Function):
    """The sign, through which gradients pass where the input is small."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, slope):
        return slope * (ctx.saved_tensors[0].abs() <= 1)


class Fused(torch.autograd.Function):
    """SiLU as fused kernels are wrapped."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return slope * s * (1 + x * (1 - s))


class ByNumpy(torch.autograd.Function):
    """The hyperbolic tangent by numpy, in both directions."""

    @staticmethod
    def forward(ctx, x):
        ctx.value = torch.from_numpy(x.detach().numpy()).tanh()
        return ctx.value.clone()

    @staticmethod
    def backward(ctx, slope):
        return torch.from_numpy(slope.detach().numpy() * (1 - ctx.value.numpy() ** 2))


class ByKernel(torch.autograd.Function):
    """Softplus whose slope is computed in forward, with gradients off, as kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.sigmoid(x))
        return functional.softplus(x)

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0]


class FusedCrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradient is made in forward, as in fused loss kernels."""

    @staticmethod
    def forward(ctx, logits, labels):
        slope = torch.softmax(logits, 1) - functional.one_hot(labels, logits.shape[1])
        ctx.save_for_backward(slope / len(labels))
        return functional.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0], None


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between(function):
    return lambda: nn.Sequential(nn.Linear(5, 4), Apply(function), nn.Linear(4, 3))


class Rounded(nn.Linear):
    """Weights rounded to eighths, straight through."""

    def forward(self, x):
        return functional.linear(x, self.weight + (torch.round(self.weight * 8) / 8 - self.weight).detach(), self.bias)


class FakeQuantized(nn.Linear):
    def forward(self, x):
        return functional.linear(x, torch.fake_quantize_per_tensor_affine(self.weight, 0.125, 0, -128, 127), self.bias)


class Unscaled(nn.Linear):
    """Weights over their length, which is taken for a constant."""

    def forward(self, x):
        return functional.linear(x, self.weight / self.weight.detach().norm(), self.bias)


class Siamese(nn.Module):
    def __init__(self, stop):
        super().__init__()
        self.stop, self.a, self.p = stop, nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.p(torch.tanh(self.a(x))), self.stop(lambda: torch.tanh(self.a(x + 0.1)))


class Codebook(nn.Module):
    """Nearest codes, straight through, with the two halves of the commitment loss."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(5, 2), nn.Linear(2, 3)
        self.codes = nn.Parameter(numbers(402, 4, 2))

    def forward(self, x):
        z = self.encode(x)
        q = self.codes[torch.cdist(z.detach(), self.codes.detach()).argmin(1)]
        costs = ((q - z.detach()) ** 2).sum(1) + 0.25 * ((z - q.detach()) ** 2).sum(1)
        return self.decode(z + (q - z).detach()), costs


def _no_grad(make):
    with torch.no_grad():
        return make()


def cosine(outputs, targets):
    return -functional.cosine_similarity(outputs[0], outputs[1], dim=1).mean()


def committed(outputs, targets):
    return functional.cross_entropy(outputs[0], targets) + outputs[1].mean()


def two(layer):
    return lambda: nn.Sequential(layer(5, 4), nn.Tanh(), layer(4, 3))


WRONG = {
    "straight-through rounding": (two(Rounded), functional.cross_entropy),
    "torch's fake quantization": (two(FakeQuantized), functional.cross_entropy),
    "a straight-through sign": (between(Sign.apply), functional.cross_entropy),
    "a detached length": (two(Unscaled), functional.cross_entropy),
    "a gate of data": (between(lambda x: x * torch.sigmoid(x.data)), functional.cross_entropy),
    "a stopped target": (lambda: Siamese(lambda make: make().detach()), cosine),
    "a target without gradients": (lambda: Siamese(_no_grad), cosine),
    "a codebook": (Codebook, committed),
    "gradient reversal": (between(Reversed.apply), functional.cross_entropy),
    "a fused activation": (between(Fused.apply), functional.cross_entropy),
    "an activation by numpy": (between(ByNumpy.apply), functional.cross_entropy),
    "an activation by a kernel": (between(ByKernel.apply), functional.cross_entropy),
    "a fused loss": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
        lambda o, t: FusedCrossEntropy.apply(o, t),
    ),
}


def twice_by_autograd(model, function, theta):
    leaf = theta.clone().requires_grad_()
    value = function(torch.func.functional_call(model, weights_at(model, leaf)[0], (X,)), T)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True, materialize_grads=True)[0] for g in slope]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WRONG)
def test_products_that_are_no_derivative_of_the_gradient_are_refused(name, dtype):
    make, function = WRONG[name]

    def jacobian():
        loss = jo.ModelLoss(seeded(make), function, (X, T), dtype=dtype)
        jo.GradientDescent(loss, lr=1.0).jacobian(loss.initial())

    with pytest.raises(jo.InputError, match="second_derivatives"):
        jacobian()


@pytest.mark.parametrize("name", [name for name in WRONG if name != "a fused activation"])
def test_they_are_indeed_wrong(name):
    make, function = WRONG[name]
    model = seeded(make)
    theta = theta_of(model)
    moved = differences(training_gradient(model, function, X, T), theta, h=1e-7)
    error = (twice_by_autograd(model, function, theta) - moved).norm()
    along = differences(lambda t: function(outputs_at(model, t, X), T), theta, h=1e-7).detach()
    slope = training_gradient(model, function, X, T)(theta)
    assert error > 1e-2 * moved.norm() or (along - slope).norm() > 1e-2 * slope.norm()


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ("gradient reversal", "a fused activation")])
def test_unchecked_they_are_given_with_a_note(name):
    make, function = WRONG[name]
    model = seeded(make)
    loss = jo.ModelLoss(model, function, (X, T), second_derivatives="unchecked")
    H = loss.hessian(loss.initial())
    products = H.apply(torch.eye(len(loss.initial()), dtype=torch.float64))  # dense() refuses one that is not symmetric
    assert_near(products, twice_by_autograd(model, function, theta_of(model)).mT)
    for A in (H, jo.GradientDescent(loss, lr=1.0).jacobian(loss.initial())):
        try:
            assert any("unchecked" in note for note in jo.eigenpairs(A, k=1, which="LA").notes)
        except jo.InputError as error:  # what is given as it is need not be symmetric, and has no such eigenvalues then
            assert float((products - products.mT).norm()) > 1e-3
            assert "symmetric" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["gradient reversal", "a fused activation"])
def test_unchecked_any_gradient_may_be_stepped_along(name):
    make, function = WRONG[name]
    model = seeded(make)
    loss = jo.ModelLoss(model, function, (X, T), second_derivatives="unchecked")
    assert_near(loss.gradient(loss.initial()), training_gradient(model, function, X, T)(loss.initial()))
    loss.hessian(loss.initial()).apply(torch.ones(loss.parameters.size).double())


def test_a_backward_pass_that_can_be_differentiated_is_taken():
    class Silu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return slope * s * (1 + x * (1 - s))

    model, plain = seeded(between(Silu.apply)), seeded(between(functional.silu))
    loss = jo.ModelLoss(model, functional.cross_entropy, (X, T))
    true = assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(plain, t, X), T))
    assert not any("unchecked" in note for note in jo.eigenpairs(loss.hessian(loss.initial()), k=1, which="LA").notes)
    assert_near(twice_by_autograd(model, functional.cross_entropy, loss.initial()), true.hessian)


@pytest.mark.parametrize("given", ["maybe", None, True, 0])
def test_second_derivatives_are_checked_or_unchecked(given):
    with pytest.raises(jo.InputError, match="second_derivatives"):
        jo.ModelLoss(seeded(two(nn.Linear)), functional.cross_entropy, (X, T), second_derivatives=given)
