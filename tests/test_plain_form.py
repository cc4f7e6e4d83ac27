"""The GPU's form of the losses, on the CPU: the same numbers, and no wait for the device inside a product."""

from types import SimpleNamespace

import pytest
import torch
from cases import TWO_LAYER, numbers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import jvp_ops as jo
from jvp_ops._autodiff import recording
from jvp_ops.linear import block_of, coupled, diagonal, identity_map, power, product, rank_one, shifted, summed
from jvp_ops.losses.model._graphs import curvature
from jvp_ops.losses.model._streaming import Stream
from jvp_ops.losses.two_layer import _plain
from jvp_ops.losses.two_layer._plain import PlainForm

CPU = torch.device("cpu")


def plain(loss):
    """Put the plain form in the place of the chunks."""
    other = loss.subset(range(loss.samples))
    other._form = PlainForm.of(other._samples, loss.device, loss.dtype)
    return other


@pytest.fixture(params=[2**27, 300])
def rows(request, monkeypatch):
    """Make one chunk of all, or several."""
    monkeypatch.setattr(_plain, "CHUNK_NUMBERS", request.param)
    if request.param == 300:
        monkeypatch.setattr(_plain, "_rows", lambda hidden, classes: 7)


@pytest.mark.parametrize("name", TWO_LAYER)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_both_forms_give_the_same(name, kind, dtype, rows):
    problem = TWO_LAYER[name]
    loss, theta = problem.loss(dtype), problem.theta(dtype)
    other = plain(loss)
    eps = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(other.value(theta), loss.value(theta), rtol=eps, atol=eps)
    torch.testing.assert_close(other.gradient(theta), loss.gradient(theta), rtol=eps, atol=eps)
    here = other.at(theta)
    torch.testing.assert_close(here.gradient, loss.gradient(theta), rtol=eps, atol=eps)
    torch.testing.assert_close(here.value, loss.value(theta), rtol=eps, atol=eps)
    A, B = getattr(loss, kind)(theta), getattr(here, kind)()
    V = numbers(3, A.shape[1], 5).to(dtype)
    scale = float(A.apply(V).abs().max()) + 1
    torch.testing.assert_close(B.apply(V), A.apply(V), rtol=eps, atol=eps * scale)
    M = B.dense()
    torch.testing.assert_close(M, A.dense(), rtol=eps, atol=eps * float(M.abs().max() + 1))
    assert torch.equal(M, M.mT)
    assert B.identity() == A.identity()


def test_more_directions_than_are_multiplied_at_once():
    problem = TWO_LAYER["two classes"]
    A = problem.loss().hessian(problem.theta())
    B = plain(problem.loss()).hessian(problem.theta())
    V = numbers(3, A.shape[1], _plain.WIDEST + 3)
    torch.testing.assert_close(B.apply(V), A.apply(V), rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused_before_it_is_taken():
    loss = jo.TwoLayerLoss(jo.load_digits(), hidden=10, max_memory="1MiB")
    with pytest.raises(jo.MemoryBudgetError, match="a linearization over 1797 samples"):
        plain(loss).hessian(loss.initial(rng=0))


# --- no synchronization -------------------------------------------------------------------------------------------


class WaitedError(AssertionError):
    """Something waited for the device."""


class NoWait(TorchDispatchMode):
    """Refuses copies between devices; on fake tensors, values and shapes that depend on them are refused by torch."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, torch.Tensor)]
        if isinstance(out, torch.Tensor) and any(a.device != out.device for a in given):
            raise WaitedError(f"{function} copies from one device to another")
        return out


def wait_free(multiply, *given):
    """Multiply on fake CUDA tensors."""
    with NoWait(), torch.no_grad():
        return multiply(*given)


@pytest.fixture
def mode():
    return FakeTensorMode(allow_non_fake_inputs=False)


def fake_two_layer(mode):
    """Make the plain form's Hessian and Gauss-Newton map on a GPU that is not there."""
    loss = jo.TwoLayerLoss(torch.rand(50, 6), torch.arange(50) % 3, hidden=4, max_memory="1GiB")
    with mode:
        loss.device = torch.device("cuda", 0)
        loss._form = PlainForm(torch.empty(50, 6, device="cuda:0"), torch.empty(50, dtype=torch.int64, device="cuda:0"))
        at = loss._differentiate(torch.empty(loss.parameters.size, device="cuda:0"))
        return at.hessian().linear, at.gauss_newton().linear


# autograd asks the driver for a device: where there is none, its products run on fake tensors of the CPU
ENGINE = "cuda:0" if torch.cuda.is_available() else "cpu"


def fake_module(mode):
    """Make the products of a module's chunks, as `ModelLoss` keeps them, on fake tensors."""
    with mode:
        net = nn.Sequential(nn.Linear(6, 5, device=ENGINE), nn.GELU(), nn.Linear(5, 3, device=ENGINE))
        leaves = list(net.parameters())
        stream = Stream(SimpleNamespace(check_unchanged=lambda: None), None)
        for _ in range(2):
            x, t = torch.empty(8, 6, device=ENGINE), torch.empty(8, dtype=torch.int64, device=ENGINE)
            with recording():
                stream.graphs.append(curvature(nn.functional.cross_entropy(net(x), t), leaves))
        stream.complete = True
        return stream, sum(leaf.numel() for leaf in leaves)


def test_no_product_of_the_two_layer_network_waits(mode):
    for linear in fake_two_layer(mode):
        with mode:
            image = wait_free(linear.apply, torch.empty(linear.columns.size, 3, device="cuda:0"))
        assert (image.shape, image.device.type) == ((linear.rows.size, 3), "cuda")


def test_no_product_of_a_module_waits(mode):
    stream, size = fake_module(mode)
    with mode:
        image = wait_free(stream.product, torch.empty(size, 3, device=ENGINE))
    assert (image.shape, image.device.type) == ((size, 3), torch.device(ENGINE).type)


def compositions(H, d):
    eye = identity_map(H.rows, H.dtype, H.device)
    D, u = diagonal(d, H.rows), rank_one(d, H.rows)
    doubled = jo.Parameters.of({f"{part}.{p.name}": p.shape for part in ("theta", "v") for p in H.rows})
    yield shifted(H, 1.0, -0.1)
    yield shifted(H, 0.0, -0.1)
    yield summed(H, eye, u)
    yield product(D, H, D)
    yield product(shifted(u, 1.0, -0.5), H)
    yield power(H, 3)
    yield block_of(H, "W1", "b*")
    yield coupled([[1.0, -0.5], [None, d.unsqueeze(1)]], [-0.1, 1.0], product(D, H), doubled)


def test_no_composition_waits(mode):
    H, _ = fake_two_layer(mode)
    with mode:
        d = torch.empty(H.rows.size, device="cuda:0")
        for linear in compositions(H, d):
            wait_free(linear.apply, torch.empty(linear.columns.size, 2, device="cuda:0"))
            wait_free(linear.adjoint, torch.empty(linear.rows.size, 2, device="cuda:0"))


@pytest.mark.parametrize(
    "waiting",
    [
        lambda V: V.sum().item(),
        lambda V: bool((V > 0).any()),
        lambda V: V.nonzero(),
        lambda V: V[V > 0],
        lambda V: V.cpu(),
        lambda V: V.to("cpu", torch.float64),
        lambda V: V.tolist(),
        lambda V: float(V.max()),
        lambda V: V + torch.ones(3, 1).to(V.device),
    ],
    ids=["item", "bool", "nonzero", "mask", "cpu", "to cpu", "tolist", "float", "from cpu"],
)
def test_one_that_waits_is_seen(waiting, mode):
    with mode:
        V = torch.empty(3, 2, device="cuda:0")
        wait_free(lambda V: 2 * V, V)
        with pytest.raises(Exception, match=r"(?i)data.?dependent|dynamic|copies|nonzero|aten|tolist|linked with"):
            wait_free(waiting, V)
