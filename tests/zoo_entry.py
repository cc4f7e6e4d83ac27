"""What an entry of the zoo is: a model, a loss and data as somebody has them, and what is expected of the tool.

Nothing here, in the entries or in their oracle imports jvp_ops, so that the zoo can be checked without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

RIGHT = "right"
REFUSED = "refused"
EITHER = "right or refused"  # the loss has a Hessian, but torch's own second derivative of it is missing or wrong


@dataclass(frozen=True)
class Case:
    """One model with its loss and data. `train` is the user's own training loss on a batch, as in the training loop."""

    model: torch.nn.Module
    loss_function: Callable[..., torch.Tensor] | None
    batch: Any  # all data as one batch, in the user's form
    train: Callable[..., torch.Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)  # of jo.ModelLoss
    penalty: Callable[[torch.nn.Module], torch.Tensor] | None = None  # added once to the loss, on the user's model
    forms: tuple[str, ...] = ("one batch", "ragged batches")
    held: Mapping[str, Any] = field(default_factory=dict)  # rows that are constants, by parameter name
    step: float = 1e-5  # of the central differences
    value_error: float = 1e-9
    gradient_error: float = 1e-9
    product_error: float = 1e-5
    spread: float = 0.1  # of the noise that leads to the second place
    # the least that each fault of a refused one must show
    fault: float = 1e-4


@dataclass(frozen=True)
class Entry:
    """A named case: what makes it hard, where it was met, what is expected, and for what fault a refused one is."""

    name: str
    make: Callable[[], Case]
    expected: str
    hard: str
    source: str
    fault: str | None = None


def entry(expected, *, hard, source, fault=None):
    """Make an entry of a function that returns a case; the function's name is the entry's."""
    assert (fault is None) == (expected == RIGHT)
    return lambda make: Entry(make.__name__.replace("_", " "), make, expected, hard, source, fault)


def numbers(seed, *shape, scale=1.0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * scale


def classes(seed, most, *shape):
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed=0):
    """Make a module in float64 from a seed, leaving torch's own generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def settled(model):
    """Give the running statistics of batch-norms values that a training would leave, and go to eval mode."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(numbers(len(name), *buffer.shape, scale=0.3))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + numbers(len(name), *buffer.shape).square())
    return model.eval()


# --- training loops, as users write them -------------------------------------------------------------------------


def call(model, inputs):
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def supervised(model, loss_function, batch):
    inputs, targets = batch
    return loss_function(call(model, inputs), targets)


def labelled(model, loss_function, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return loss_function(model(**inputs), batch["labels"])


def own_loss(model, loss_function, batch):
    return model(**batch).loss


def scalar_output(model, loss_function, batch):
    return call(model, batch)


# --- batches -----------------------------------------------------------------------------------------------------


def rows(data, start, stop):
    """Take some samples of data in any of the forms."""
    if isinstance(data, torch.Tensor):
        return data[start:stop]
    if isinstance(data, Mapping):
        return {name: rows(part, start, stop) for name, part in data.items()}
    return tuple(rows(part, start, stop) for part in data)


def samples(data):
    while not isinstance(data, torch.Tensor):
        data = next(iter(data.values())) if isinstance(data, Mapping) else data[0]
    return len(data)


def ragged(data):
    """Split into batches of unequal sizes, a single sample among them."""
    n = samples(data)
    edges = [0, 3, 4, n]
    return [rows(data, start, stop) for start, stop in pairwise(edges)]


def loader(data):
    """Load the samples one by one and collate them, as a DataLoader over a data set does."""
    return torch.utils.data.DataLoader([_row(data, index) for index in range(samples(data))], batch_size=3)


def _row(data, index):
    if isinstance(data, torch.Tensor):
        return data[index]
    if isinstance(data, Mapping):
        return {name: _row(part, index) for name, part in data.items()}
    return tuple(_row(part, index) for part in data)


def data_of(case, form):
    return {"one batch": lambda data: data, "ragged batches": ragged, "data loader": loader}[form](case.batch)
