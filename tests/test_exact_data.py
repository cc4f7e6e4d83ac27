"""What a loss computes in float64 starts from the data as they were given, never from numbers rounded to float32."""

import tracemalloc

import numpy as np
import pytest
import torch
from cases import hessian, numbers

import jvp_ops as jo

DOUBLE = torch.float64
HIDDEN, CLASSES = 2, 3
DIGITS = jo.Dataset(
    "middle rows", np.array(jo.load_digits().images[:90, 2:4]), np.array(jo.load_digits().labels[:90] % 3), 3, 16
)
INDEX, AGAIN = [3, 41, 41, 7, 58, 12, 0, 5], [0, 2, 5, 7, 6, 6]
BYTES = jo.Dataset(
    "bytes",
    np.random.default_rng(1).integers(0, 256, (60, 3, 4)).astype(np.uint8),
    np.random.default_rng(2).integers(0, CLASSES, 60),
    CLASSES,
    255,
)


def pixels(data):
    """The inputs in float64, made without the package."""
    return torch.from_numpy(data.images.reshape(len(data), -1).astype(np.float64) / data.maximum)


def oracle(X, t, theta, hidden=HIDDEN):
    d, c = X.shape[1], CLASSES

    def value(theta):
        W1, b1, W2, b2 = theta.split([d * hidden, hidden, hidden * c, c])
        logits = torch.sigmoid(X @ W1.view(d, hidden) + b1) @ W2.view(hidden, c) + b2
        return torch.nn.functional.cross_entropy(logits, torch.tensor(t))

    return hessian(value)(theta)


def theta_of(loss):
    return numbers(3, loss.parameters.size)


def distance(A, B):
    return float((A - B).abs().max() / B.abs().max())


def digits_loss(**options):
    return jo.TwoLayerLoss(BYTES, hidden=HIDDEN, **options)


def arrays_loss(inputs, data=BYTES, **options):
    return jo.TwoLayerLoss(inputs, data.labels, hidden=HIDDEN, classes=CLASSES, **options)


FLOAT64 = {
    "of bytes": lambda: digits_loss(dtype="float64"),
    "twin of bytes": lambda: digits_loss().to(dtype="float64"),
    "twin of the twin": lambda: digits_loss(dtype="float64").to(dtype="float32").to(dtype="float64"),
    "of numbers": lambda: arrays_loss(pixels(BYTES), dtype="float64"),
    "twin of numbers": lambda: arrays_loss(pixels(BYTES)).to(dtype="float64"),
    "twin of a numpy array": lambda: arrays_loss(pixels(BYTES).numpy()).to(dtype="float64"),
    "twin of the twin of numbers": lambda: (
        arrays_loss(pixels(BYTES), dtype="float64").to(dtype="float32").to(dtype="float64")
    ),
}


@pytest.mark.parametrize("name", FLOAT64)
def test_the_hessian_in_float64_is_that_of_the_data_as_given(name):
    loss = FLOAT64[name]()
    theta = theta_of(loss)
    assert distance(loss.hessian(theta).dense(), oracle(pixels(BYTES), BYTES.labels, theta)) < 1e-13
    rounded = oracle(torch.from_numpy(BYTES.inputs).double(), BYTES.labels, theta)
    assert distance(loss.hessian(theta).dense(), rounded) > 1e-10


@pytest.mark.parametrize("name", FLOAT64)
def test_so_is_that_of_a_subset(name):
    loss = FLOAT64[name]().subset(INDEX)
    theta = theta_of(loss)
    X, t = pixels(BYTES)[INDEX], BYTES.labels[INDEX]
    assert distance(loss.hessian(theta).dense(), oracle(X, t, theta)) < 1e-13
    assert distance(loss.hessian(theta).dense(), oracle(X.float().double(), t, theta)) > 1e-10


@pytest.mark.parametrize("single", [digits_loss, lambda: arrays_loss(pixels(BYTES))], ids=["bytes", "numbers"])
@pytest.mark.parametrize("parts", [[], [INDEX], [INDEX, AGAIN]], ids=["all", "subset", "subset of a subset"])
def test_the_float64_twin_of_every_linearization_is_that_of_the_data_as_given(single, parts):
    loss, X, t = single(), pixels(BYTES), BYTES.labels
    for index in parts:
        loss, X, t = loss.subset(index), X[index], t[index]
    theta = theta_of(loss)
    exact = oracle(X, t, theta)
    assert distance(loss.hessian(theta.float()).in_float64().dense(), exact) < 1e-13
    f = jo.GradientDescent(loss, lr=0.5)
    Df = torch.eye(len(theta), dtype=DOUBLE) - 0.5 * exact
    assert distance(f.jacobian(theta.float()).in_float64().dense(), Df) < 1e-13
    G = loss.gauss_newton(theta.float()).in_float64().dense()
    assert distance(G, loss.to(dtype="float64").gauss_newton(theta).dense()) < 1e-13


@pytest.mark.parametrize("data", [jo.load_digits(), DIGITS, BYTES], ids=lambda data: data.name)
@pytest.mark.parametrize("part", [None, list(range(50, 0, -3))], ids=["all", "subset"])
def test_the_float32_numbers_are_those_of_inputs_bit_for_bit(data, part):
    of_data = jo.TwoLayerLoss(data, hidden=HIDDEN)
    of_inputs = jo.TwoLayerLoss(data.inputs, data.labels, hidden=HIDDEN, classes=data.classes)
    of_float64 = jo.TwoLayerLoss(data, hidden=HIDDEN, dtype="float64").to(dtype="float32")
    if part is not None:
        of_data, of_inputs, of_float64 = (loss.subset(part) for loss in (of_data, of_inputs, of_float64))
    for other in (of_data, of_float64):
        assert other.parameters == of_inputs.parameters
        assert torch.equal(other.null_space().to_dense(), of_inputs.null_space().to_dense())
        for mine, theirs in zip(other._form.chunks, of_inputs._form.chunks, strict=True):
            assert mine.inputs.dtype == torch.float32
            for name in ("inputs", "live", "labels", "numbers"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_inputs_that_vanish_in_float32_are_there_in_the_float64_twin():
    X = pixels(BYTES)
    X[:, 5] = 1e-60 * X[:, 5]
    X[:, 6] = 0
    loss = arrays_loss(X)
    theta = theta_of(loss)
    theta[5 * HIDDEN : 6 * HIDDEN] *= 1e60
    exact = oracle(X, BYTES.labels, theta)
    assert float(exact[5 * HIDDEN].abs().max()) > 0
    assert torch.allclose(loss.to(dtype="float64").hessian(theta).dense(), exact, rtol=1e-11, atol=1e-14)
    assert loss.null_space().shape[1] == HIDDEN + HIDDEN + 1  # of the one input that is zero, of W2, of b2


def test_numbers_that_float32_holds_are_kept_once():
    for inputs in (BYTES.inputs, BYTES.inputs.astype(np.float64), (BYTES.images.reshape(60, -1)).astype(np.int64)):
        for loss in (arrays_loss(inputs), arrays_loss(inputs).subset(INDEX), arrays_loss(inputs).to(dtype="float64")):
            pairs = zip(loss._samples.chunks, loss._form.chunks, strict=True)
            assert all(kept.inputs is used.inputs for kept, used in pairs)
    assert arrays_loss(pixels(BYTES), dtype="float64")._samples.chunks[0].inputs.dtype == DOUBLE
    of_bytes = digits_loss(dtype="float64")._samples
    assert {chunk.inputs.dtype for chunk in of_bytes.chunks} == {torch.uint8}
    rounded = arrays_loss(pixels(BYTES))
    assert rounded.to(dtype="float32")._samples is rounded._samples


def test_the_callers_float64_array_may_change_later():
    for X in (pixels(BYTES), pixels(BYTES).numpy()):
        loss = arrays_loss(X)
        theta = theta_of(loss)
        X[:] = 0
        exact = oracle(pixels(BYTES), BYTES.labels, theta)
        assert distance(loss.to(dtype="float64").hessian(theta).dense(), exact) < 1e-13


def test_a_loss_on_another_device_still_has_the_data_as_given(device):
    loss = digits_loss().to(device=device)
    theta = theta_of(loss)
    exact = oracle(pixels(BYTES), BYTES.labels, theta)
    for twin in (
        loss.to(dtype="float64"),
        loss.to(dtype="float64", device="cpu"),
        digits_loss(dtype="float64").to(device=device),
    ):
        assert distance(twin.hessian(theta.to(twin.device)).dense().cpu(), exact) < 1e-13
    assert all(
        torch.equal(mine.inputs.cpu(), theirs.inputs)
        for mine, theirs in zip(loss._form.chunks, digits_loss()._form.chunks, strict=True)
    )


def test_an_identity_names_the_data_as_given_whatever_they_are_computed_in():
    def data_of(loss):
        known = loss.identity()
        assert known.pop("dtype") == str(loss.dtype)
        return known

    X = pixels(BYTES)
    for make in (digits_loss, lambda **dtype: arrays_loss(X, **dtype), lambda **dtype: arrays_loss(X.float(), **dtype)):
        single, double = make(), make(dtype="float64")
        assert single.identity() == make().identity() != double.identity()
        assert double.identity() == single.to(dtype="float64").identity() == make(dtype="float64").identity()
        assert data_of(single) == data_of(double) == data_of(double.to(dtype="float32"))
        assert data_of(single.subset(INDEX)) == data_of(double.subset(INDEX)) != data_of(single)
    part = jo.Dataset("part", BYTES.images[INDEX], BYTES.labels[INDEX], CLASSES, 255)
    assert jo.TwoLayerLoss(part, hidden=HIDDEN).identity() == digits_loss().subset(INDEX).identity()
    assert data_of(arrays_loss(X)) != data_of(arrays_loss(X.float()))
    darker = jo.Dataset("darker", BYTES.images // 2, BYTES.labels, CLASSES, 127)
    brighter = jo.Dataset("brighter", BYTES.images // 2, BYTES.labels, CLASSES, 255)
    others = [data_of(jo.TwoLayerLoss(data, hidden=HIDDEN)) for data in (BYTES, darker, brighter)]
    assert all(a != b for n, a in enumerate(others) for b in others[:n])


def test_classes_default_to_those_of_the_data_set():
    three = jo.Dataset("three", BYTES.images[:4], np.array([0, 1, 0, 1]), 3, 255)
    assert jo.TwoLayerLoss(three, hidden=2).parameters["b2"].size == 3
    assert jo.TwoLayerLoss(three, hidden=2, classes=5).parameters["b2"].size == 5
    with pytest.raises(jo.InputError, match="labels run from 0 to 1; with classes=1 they must be 0 to 0"):
        jo.TwoLayerLoss(three, hidden=2, classes=1)


def test_labels_beside_a_data_set_or_missing_without_one_are_refused():
    for labels in (BYTES.labels, [0], BYTES.inputs):
        with pytest.raises(jo.InputError, match=r"brings its labels .*: leave them out, or pass its \.inputs"):
            jo.TwoLayerLoss(BYTES, labels, hidden=2)
    for inputs in (BYTES.inputs, torch.ones(2, 2), [[1.0]], None):
        with pytest.raises(
            jo.InputError, match="labels are missing: pass the class of each sample, or a jvp_ops Datas"
        ):
            jo.TwoLayerLoss(inputs, hidden=2)


def test_the_pixels_of_a_data_set_are_divided_into_one_array_in_the_dtype_asked_for():
    big = jo.Dataset("big", np.full((500, 30, 30), 200, dtype=np.uint8), np.zeros(500, dtype=np.int64), 1, 255)
    for dtype in (np.float32, "float64", np.dtype(np.float64)):
        tracemalloc.start()
        found = big.inputs_in(dtype)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.1 * found.nbytes
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, big.images.reshape(500, -1).astype(dtype) / np.dtype(dtype).type(255))
    np.testing.assert_array_equal(big.inputs, big.inputs_in("float32"))
    for dtype in ("float16", np.int64, "nonsense", None, 3):
        with pytest.raises(jo.InputError, match="dtype must be float32 or float64, not"):
            big.inputs_in(dtype)


@pytest.mark.parametrize("network", ["two-layer", "tanh"])
def test_the_command_line_takes_the_data_as_given(network):
    from argparse import Namespace

    from jvp_ops.cli._training import network_of

    options = {"hidden": 4, "scale": None, "seed": 0, "device": "cpu", "dtype": "float64", "max_memory": None}
    loss, theta = network_of(BYTES, Namespace(network=network, **options))
    weights = list(loss.parameters.unflatten(theta).values())
    X, t = pixels(BYTES), torch.tensor(BYTES.labels)
    if network == "two-layer":
        W1, b1, W2, b2 = weights
        expected = torch.nn.functional.cross_entropy(torch.sigmoid(X @ W1 + b1) @ W2 + b2, t)
    else:
        for W, b in zip(weights[:4:2], weights[1:4:2], strict=True):
            X = torch.tanh(X @ W.mT + b)
        expected = ((X @ weights[4].mT + weights[5] - torch.nn.functional.one_hot(t, CLASSES)) ** 2).mean()
    assert abs(float(loss.value(theta) / expected) - 1) < 1e-14
