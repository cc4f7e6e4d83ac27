"""Data loaders: read anew on each pass, and refused when they give other data."""

import pytest
import torch
from cases import mean_cross_entropy, mlp, numbers, seeded
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

import jvp_ops as jo

X, T = numbers(1, 10, 3), torch.arange(10) % 3


def loss_over(data):
    return jo.ModelLoss(seeded(mlp), mean_cross_entropy, data)


class Random(Dataset):
    """A data set with a random transform: noise on each read."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + torch.randn(3), T[index]


class Fading:
    """Batches whose last one changes after so many passes."""

    def __init__(self, passes):
        self.left = passes

    def __iter__(self):
        self.left -= 1
        yield X[:5], T[:5]
        yield X[5:] + (0 if self.left >= 0 else 1), T[5:]


class Shrinking(Fading):
    def __iter__(self):
        self.left -= 1
        yield X[:5], T[:5]
        if self.left >= 0:
            yield X[5:], T[5:]


@pytest.mark.parametrize("batch_size", [3, 10])
def test_a_shuffling_loader_is_refused_by_the_name_of_its_sampler(batch_size):
    loader = DataLoader(TensorDataset(X, T), batch_size=batch_size, shuffle=True)
    with pytest.raises(jo.DataError, match=r"DataLoader with a RandomSampler.*shuffle=False"):
        loss_over(loader)


def test_a_random_sampler_of_ones_own_is_refused():
    data = TensorDataset(X, T)
    with pytest.raises(jo.DataError, match="RandomSampler"):
        loss_over(DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True)))


def test_a_random_transform_is_refused():
    with pytest.raises(jo.DataError, match=r"DataLoader with a SequentialSampler.*batch 0 differs.*not random"):
        loss_over(DataLoader(Random(), batch_size=4))


@pytest.mark.parametrize("use", ["value", "gradient", "hessian", "gauss_newton"])
def test_data_that_change_later_are_refused_when_they_are_met(use):
    data = Fading(100)
    loss = loss_over(data)
    data.left = 0
    theta = loss.initial()
    with pytest.raises(jo.DataError, match="batch 1 differs from the first pass"):
        [getattr(loss, use)(theta) for _ in range(5)]


def test_batches_that_go_missing_later_are_refused():
    data = Shrinking(100)
    loss = loss_over(data)
    data.left = 0
    theta = loss.initial()
    with pytest.raises(jo.DataError, match="gave 1 batches, 2 on the first pass"):
        [loss.gradient(theta) for _ in range(5)]


def test_an_iterator_that_can_be_read_once_is_refused():
    for iterator in (iter([(X, T)]), ((X, T) for _ in range(2))):
        with pytest.raises(jo.InputError, match=r"read only once.*DataLoader"):
            loss_over(iterator)


def test_a_loader_that_does_not_shuffle_is_taken_whole():
    model = seeded(mlp)
    from_loader = jo.ModelLoss(model, mean_cross_entropy, DataLoader(TensorDataset(X, T), batch_size=4))
    from_tensors = jo.ModelLoss(model, mean_cross_entropy, (X, T))
    assert from_loader.samples == 10
    theta = from_tensors.initial()
    torch.testing.assert_close(from_loader.value(theta), from_tensors.value(theta), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "data, message",
    [
        (X, "each batch must be"),
        (7, r"data must be \(inputs, targets\) or a DataLoader, not int"),
        ([], "no samples"),
        ((X[:0], T[:0]), "no samples"),
        ([X, T], r"each batch must be \(inputs, targets\), not Tensor"),
        ([(X,)], r"a batch holds 1 parts, and the model's forward takes 1 to 1: unpack="),
        ([(X, T, T)], "do not run on the data: TypeError"),  # both T are the targets
        ((X, T[:3]), r"different lengths \[3, 10\]"),
        ((X, torch.tensor(1)), "dimension of samples"),
        ((X.numpy(), T), "torch tensors, not ndarray"),
        ([(X, T), (X, T[:2])], "batch 1 .*different lengths"),
    ],
)
def test_data_of_the_wrong_form_are_refused(data, message):
    with pytest.raises(jo.InputError, match=message):
        loss_over(data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_where_they_are(bad):
    spoiled = X.clone()
    spoiled[3, 1] = bad
    with pytest.raises(jo.NonFiniteError, match=r"batch 0 of the data holds 1 NaN or Inf of 30 .*\(3, 1\)"):
        loss_over((spoiled, T))
    with pytest.raises(jo.NonFiniteError, match=r"batch 1 of the data.*\(1, 1\)"):
        loss_over([(X[:2], T[:2]), (spoiled[2:], T[2:])])
    targets = torch.full((10, 3), 1.0).double()
    targets[0, 0] = bad
    with pytest.raises(jo.NonFiniteError):
        jo.ModelLoss(seeded(mlp), torch.nn.functional.mse_loss, (X, targets))
