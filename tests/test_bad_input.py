"""What is refused at a loss, a map or an operator, and what the message says."""

import numpy as np
import pytest
import torch
from cases import MODULES, TWO_LAYER, numbers

import jvp_ops as jo
from jvp_ops._checks import check_state
from jvp_ops._memory import parse_bytes

NAN, INF = float("nan"), float("inf")
X, T = np.eye(4, 3), np.array([0, 1, 2, 1])
FUNCTION = jo.FunctionLoss(lambda x: (x**3).sum(), size=5, dtype="float64")
MAP = jo.FunctionMap(lambda x: x**3, size=5, dtype="float64")
HOLDERS = {
    "two-layer": TWO_LAYER["two classes"].loss(),
    "module": MODULES["perceptron"].loss(),
    "function": FUNCTION,
}
USES = {
    f"{name} {use}": getattr(loss, use) for name, loss in HOLDERS.items() for use in ("value", "gradient", "hessian")
}
USES |= {f"{name} gauss_newton": HOLDERS[name].gauss_newton for name in ("two-layer", "module")}
DESCENT = jo.GradientDescent(FUNCTION, lr=0.1)
USES |= {"step": DESCENT, "descent": DESCENT.jacobian, "map": MAP, "map jacobian": MAP.jacobian}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda t: t[:-1], jo.InputError, r"has shape \({short},\); expected \({n},\)"),
        (lambda t: t[:, None], jo.InputError, r"has shape \({n}, 1\); expected \({n},\)"),
        (lambda t: t.float(), jo.InputError, r"dtype torch.float32, expected torch.float64: .*\.to\(torch.float64\)"),
        (lambda t: t.long(), jo.InputError, "dtype torch.int64, expected torch.float64"),
        (lambda t: t.to("meta"), jo.InputError, "is on meta, expected cpu"),
        (lambda t: t.numpy(), jo.InputError, "must be a torch tensor, not ndarray: torch.as_tensor"),
        (lambda t: t.tolist(), jo.InputError, "must be a torch tensor, not list"),
        (lambda t: None, jo.InputError, "must be a torch tensor, not NoneType"),
        (lambda t: t.index_fill(0, torch.tensor([2]), NAN), jo.NonFiniteError, "holds 1 NaN or Inf of {n} .* at 2$"),
        (lambda t: t * INF, jo.NonFiniteError, "holds {n} NaN or Inf of {n} entries; the first is at 0"),
    ],
    ids=["short", "matrix", "float32", "integers", "device", "numpy", "list", "none", "nan", "inf"],
)
def test_a_state_of_the_wrong_kind_is_refused(use, spoil, error, message):
    owner = getattr(USES[use], "__self__", USES[use])
    n = owner.parameters.size
    with pytest.raises(error, match=message.replace("{n}", str(n)).replace("{short}", str(n - 1))) as caught:
        USES[use](spoil(torch.ones(n, dtype=torch.float64)))
    assert isinstance(caught.value, jo.JvpOpsError)


OPERATORS = {name: loss.hessian(torch.ones(loss.parameters.size).double()) for name, loss in HOLDERS.items()}
OPERATORS |= {"block": OPERATORS["two-layer"].block("W1", "b2"), "map": MAP.jacobian(torch.ones(5).double())}
OPERATORS |= {"transposed map": OPERATORS["map"].T}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("side", ["apply", "apply_adjoint"])
def test_a_direction_of_the_wrong_kind_is_refused(name, side):
    A = OPERATORS[name]
    n = A.shape[1] if side == "apply" else A.shape[0]
    product, good = getattr(A, side), torch.ones(n, 2, dtype=torch.float64)
    for bad, message in (
        (good[:-1], rf"the direction has shape \({n - 1}, 2\); expected \({n},\) or \({n}, m\)"),
        (good[None], rf"shape \(1, {n}, 2\)"),
        (good[0, 0], r"shape \(\)"),
        (good.float(), "dtype torch.float32, expected torch.float64"),
        (good.to("meta"), "is on meta, expected cpu"),
        (good.numpy(), "must be a torch tensor, not ndarray"),
        ([1.0] * n, "must be a torch tensor, not list"),
    ):
        with pytest.raises(jo.InputError, match=message):
            product(bad)
    for value in (NAN, INF, -INF):
        spoiled = good.clone()
        spoiled[1, 1] = value
        with pytest.raises(jo.NonFiniteError, match=r"the direction holds 1 NaN or Inf .*\(1, 1\)"):
            product(spoiled)
        with pytest.raises(jo.NonFiniteError, match="the direction holds"):
            (A if side == "apply" else A.T) @ spoiled.numpy()


def test_a_product_that_is_not_finite_names_its_number():
    A = jo.FunctionLoss(lambda x: torch.sqrt(x).sum(), size=3, dtype="float64").hessian(torch.zeros(3).double())
    for expected in ("product 1 of this HessianOperator", "product 2 of this", "product 3 to 5 of this"):
        V = torch.ones(3, 3).double() if " to " in expected else torch.ones(3).double()
        with pytest.raises(jo.NonFiniteError, match=expected):
            A.apply(V)
    with pytest.raises(jo.NonFiniteError, match=r"product 6 .*not differentiable"):
        A @ np.ones(3)


@pytest.mark.parametrize(
    "pattern", ["W3", "w1", "W3*", ["W1", "c"], "", "[W"], ids=["name", "case", "glob", "list", "empty", "open"]
)
def test_an_unknown_block_lists_the_names(pattern):
    for ask in (
        lambda: OPERATORS["two-layer"].block(pattern, "b2"),
        lambda: OPERATORS["two-layer"].block("b2", pattern),
    ):
        with pytest.raises(jo.InputError, match=r"no parameter is named .*; the names are W1, b1, W2, b2"):
            ask()
    with pytest.raises(jo.InputError, match="no parameter was named; the names are W1, b1, W2, b2"):
        OPERATORS["two-layer"].block([], "b2")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, -1, 1], "labels run from -1 to 1; with classes=2 they must be 0 to 1"),
        (T.astype(float), r"labels are torch.float64 of shape \(4,\); expected integers"),
        (T.astype(bool), "labels are torch.bool"),
        (T[:, None], r"shape \(4, 1\); expected integers of shape \(samples,\)"),
        (T[:3], "4 inputs but 3 labels"),
        (torch.tensor(1), r"shape \(\)"),
    ],
)
def test_labels_of_the_wrong_kind_are_refused(labels, message):
    with pytest.raises(jo.InputError, match=message):
        jo.TwoLayerLoss(X, labels, hidden=2)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (X[0], r"inputs have shape \(3,\); expected \(samples, inputs\)"),
        (X[:0], r"inputs have shape \(0, 3\).*at least one of each"),
        (X[:, :0], r"shape \(4, 0\)"),
        (X[None], r"shape \(1, 4, 3\)"),
        (X + 1j, "inputs are torch.complex128; expected real numbers"),
        (np.full((4, 3), "a"), "inputs"),
        (np.full((4, 3), None), "inputs"),
    ],
)
def test_inputs_of_the_wrong_kind_are_refused(inputs, message):
    with pytest.raises(jo.InputError, match=message):
        jo.TwoLayerLoss(inputs, T[: len(inputs)], hidden=2)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_inputs_that_are_not_finite_are_refused_where_they_are(bad):
    spoiled = X.copy()
    spoiled[2, 1] = bad
    with pytest.raises(jo.NonFiniteError, match=r"inputs holds 1 NaN or Inf of 12 entries; the first is at \(2, 1\)"):
        jo.TwoLayerLoss(spoiled, T, hidden=2)


def test_inputs_that_overflow_in_the_dtype_asked_for_are_refused():
    with pytest.raises(jo.JvpOpsError, match="inputs"):
        jo.TwoLayerLoss(X * 1e300, T, hidden=2, dtype="float32")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden": 0}, "hidden must be an integer of at least 1, not 0"),
        ({"hidden": 2.0}, "hidden must be an integer"),
        ({"hidden": True}, "hidden must be an integer"),
        ({"classes": 2}, "labels run from 0 to 2; with classes=2 they must be 0 to 1"),
        ({"classes": 0}, "classes must be an integer of at least 1"),
        ({"dtype": "float16"}, "dtype float16 is not supported: use float32 or float64"),
        ({"dtype": torch.int64}, "dtype torch.int64 is not supported"),
        ({"dtype": "nonsense"}, "dtype nonsense is not supported"),
        ({"device": "nonsense"}, "device 'nonsense' is not a torch device"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options, message):
    with pytest.raises(jo.InputError, match=message):
        jo.TwoLayerLoss(X, T, **{"hidden": 2, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    for ask in (
        lambda: jo.TwoLayerLoss(X, T, hidden=2, device="cuda"),
        lambda: MODULES["perceptron"].loss(device="cuda"),
        lambda: jo.FunctionMap(torch.sin, size=2, device="cuda:1"),
        lambda: HOLDERS["two-layer"].to(device="cuda"),
    ):
        with pytest.raises(jo.InputError, match=r"'cuda(:1)?' was asked for, but torch sees no CUDA device"):
            ask()


@pytest.mark.parametrize("budget", ["1KiB", 1024])
def test_a_budget_that_is_too_small_is_refused_with_both_sizes(budget):
    both = r"needs [\d.e+]+ [KMG]?i?B, more than the 1 KiB it may use: .*max_memory"
    two = TWO_LAYER["several sparse chunks"]
    module = MODULES["transformer block"].loss(max_memory=budget)
    for ask in (
        lambda: two.loss(max_memory=budget).hessian(two.theta()),
        lambda: two.loss(max_memory=budget).gauss_newton(two.theta()),
        lambda: module.hessian(module.initial()),
        lambda: module.gauss_newton(module.initial()),
        lambda: module.gradient(module.initial()),
        lambda: OPERATORS["two-layer"].dense(max_memory=budget),
        lambda: OPERATORS["module"].dense(max_memory=budget),
    ):
        with pytest.raises(jo.MemoryBudgetError, match=both) as caught:
            ask()
        assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("size", ["lots", "", "-1GiB", "2 XB", -5, True, None, "1e3", NAN, [1], "GiB"])
def test_a_memory_size_that_cannot_be_read_is_refused(size):
    with pytest.raises(jo.InputError, match="is not a memory size: write bytes as an int, or text such as"):
        parse_bytes(size)


def test_a_bad_budget_is_refused_where_it_is_used():
    with pytest.raises(jo.InputError, match="'lots' is not a memory size"):
        OPERATORS["two-layer"].dense(max_memory="lots")
    with pytest.raises(jo.InputError, match="'lots' is not a memory size"):
        TWO_LAYER["two classes"].loss(max_memory="lots").hessian(TWO_LAYER["two classes"].theta())


@pytest.mark.parametrize("rng", [-1, 1.5, True, "0", None])
def test_a_seed_of_the_wrong_kind_is_refused(rng):
    for name in ("two-layer", "function"):
        with pytest.raises(jo.InputError, match=r"rng must be a seed .*not "):
            HOLDERS[name].initial(rng=rng)


def test_a_checked_state_is_not_copied():
    state = numbers(1, 5)
    assert check_state(state, "x", size=5, dtype=state.dtype, device=state.device).data_ptr() == state.data_ptr()
