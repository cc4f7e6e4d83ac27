"""Graphs, sparse matrices, complex numbers, Gaussian processes, unrolled solvers, and models that remember."""

import torch
from torch import nn
from torch.nn import functional
from zoo_entry import REFUSED, RIGHT, Case, classes, entry, numbers, seeded, supervised
from zoo_science import given, net

X, LABELS, Y = numbers(1, 8, 4), classes(2, 3, 8), numbers(3, 8, 3)
ONE, ALL = ("one batch",), ("one batch", "ragged batches", "data loader")
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 2], [1, 2, 3, 4, 5, 6, 7, 0, 4, 6]])


class Messages(nn.Module):
    def __init__(self):
        super().__init__()
        self.message, self.update, self.head = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x, edges, graph):
        source, target = edges
        sent = torch.tanh(self.message(torch.cat([x[source], x[target]], 1)))
        x = torch.tanh(self.update(torch.cat([x, torch.zeros_like(x).index_add(0, target, sent)], 1)))
        summed = x.new_zeros(3, 4).scatter_add(0, graph[:, None].expand(-1, 4), x)
        return self.head(summed)


@entry(
    RIGHT,
    hard="three graphs in one batch of nodes, edges and graphs: three numbers of rows",
    source="practice (graph networks)",
)
def message_passing_on_a_batch_of_graphs():
    inputs = {"x": X, "edges": EDGES, "graph": torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])}
    return Case(seeded(Messages), nn.MSELoss(), (inputs, Y[:3]), supervised, {"coupled": True}, forms=ONE)


class Spread(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        weight = torch.full((10,), 0.5)
        adjacency = torch.sparse_coo_tensor(EDGES, weight, (8, 8), check_invariants=True).coalesce()
        self.register_buffer("adjacency", adjacency)

    def forward(self, x):
        x = torch.sparse.mm(self.adjacency, torch.tanh(self.first(x)))
        return self.last(x)


@entry(RIGHT, hard="a sparse matrix among the buffers; every node sees others", source="practice (graph networks)")
def graph_convolution_with_a_sparse_matrix():
    seen = torch.where(torch.arange(8) < 5, LABELS, -100)
    loss_function = nn.CrossEntropyLoss()
    return Case(seeded(Spread), loss_function, (X, seen), supervised, {"coupled": True}, forms=ONE)


@entry(
    REFUSED,
    fault="no rows",
    hard="the same, and nothing says that its nodes cannot be cut",
    source="practice (graph networks)",
)
def graph_convolution_that_hides_its_coupling():
    # the adjacency has eight rows, whatever the batch
    return Case(seeded(Spread), nn.CrossEntropyLoss(), (X, LABELS), supervised, forms=ONE)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 5, dtype=torch.complex128) * 0.3)
        self.last, self.gain = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        hidden = torch.tanh(torch.fft.fft(x.to(self.first.dtype)) @ self.first)
        return self.gain * (hidden @ self.last).abs()


@entry(
    RIGHT,
    hard="complex parameters: their gradients follow a convention, their directions are real",
    source="pytorch/pytorch: jacobian computed with fwd and reverse strategy are conjugates",
)
def complex_network():
    return Case(seeded(Complex), nn.MSELoss(), (X, Y), supervised, forms=ALL)


class GaussianProcess(nn.Module):
    """Its output is the negative log marginal likelihood."""

    def __init__(self):
        super().__init__()
        self.length, self.scale = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(-0.1))
        self.noise, self.mean = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        apart = (x[:, None] - x).square().sum(-1)
        covariance = self.scale.exp() * torch.exp(-apart / self.length.exp()) + self.noise.exp() * torch.eye(len(x)).to(
            x
        )
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, (y - self.mean)[:, None], upper=False)
        return 0.5 * white.square().sum() + factor.diagonal().log().sum()


@entry(
    RIGHT,
    hard="no sum over samples; parameters of no dimensions; a Cholesky factor",
    source="practice (Gaussian processes)",
)
def marginal_likelihood_of_a_gaussian_process():
    return Case(seeded(GaussianProcess), None, {"x": X, "y": Y[:, 0]}, given, {"coupled": True}, forms=ONE)


@entry(REFUSED, fault="coupled samples", hard="the same, and nothing says so", source="practice (Gaussian processes)")
def marginal_likelihood_that_hides_its_coupling():
    return Case(seeded(GaussianProcess), None, {"x": X, "y": Y[:, 0]}, given)


class Transport(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(4, 6)

    def forward(self, x):
        cost = (self.body(x).view(-1, 3, 2)[:, :, None] - torch.eye(3, 2).to(x)).square().sum(-1)
        f, g = torch.zeros_like(cost[:, :, 0]), torch.zeros_like(cost[:, 0])
        for _ in range(30):
            f = -torch.logsumexp(g[:, None] - cost / 0.5, 2)
            g = -torch.logsumexp(f[:, :, None] - cost / 0.5, 1)
        return (torch.exp(f[:, :, None] + g[:, None] - cost / 0.5) * cost).sum((1, 2))


@entry(RIGHT, hard="thirty unrolled iterations of a solver", source="practice (optimal transport)")
def unrolled_optimal_transport():
    return Case(seeded(Transport), lambda outputs, targets: (outputs * targets).mean(), (X, Y[:, 0]), supervised)


class Flowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.field, self.head = net(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = 0.25
        for _ in range(4):
            a = self.field(x)
            b = self.field(x + h / 2 * a)
            c = self.field(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.field(x + h * c))
        return self.head(x)


@entry(RIGHT, hard="one module called sixteen times", source="practice (neural differential equations)")
def differential_equation_by_runge_kutta():
    return Case(seeded(Flowing), nn.MSELoss(), (X, Y), supervised, forms=ALL)


# --- models that remember -----------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.calls, self.sizes = net(4, 3), 0, []
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        self.sizes.append(len(x))
        self.batches += 1
        return self.body(x)


@entry(RIGHT, hard="counters in Python and in a buffer, moved in each call: harmless", source="practice (logging)")
def counters_of_calls():
    return Case(seeded(Counting), nn.MSELoss(), (X, Y), supervised, forms=ALL)


class Annealed(Counting):
    def forward(self, x):
        return super().forward(x) / max(0.5, 1 - 0.01 * self.calls)


@entry(
    REFUSED,
    fault="stateful",
    hard="a temperature that falls with each call: each look at the loss is another loss",
    source="practice (annealing)",
)
def temperature_that_falls_with_each_call():
    return Case(seeded(Annealed), nn.MSELoss(), (X, Y), supervised)


class Folded(nn.Module):
    """Multiplies its two weights into one at the first call in eval mode, and keeps it."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.kept = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False), None

    def forward(self, x):
        if self.training or self.kept is None:
            weight = self.last.weight @ self.first.weight
            self.kept = None if self.training else weight
            return x @ weight.T
        return x @ self.kept.T


class Wandering(Folded):
    """Keeps the folded weight without its graph, as a server would."""

    def forward(self, x):
        out = super().forward(x)
        self.kept = None if self.kept is None else self.kept.detach()
        return out


def refolded(model, loss_function, batch):
    model.kept = None
    return supervised(model, loss_function, batch)


@entry(
    RIGHT,
    hard="a product of weights kept from the first call in eval mode, handed over before it: it must follow θ",
    source="practice (folded weights; zero-shot heads)",
)
def weights_folded_at_the_first_call():
    return Case(seeded(Wandering).eval(), nn.MSELoss(), (X, Y), refolded)


@entry(RIGHT, hard="the same model in training mode keeps nothing", source="practice (folded weights)")
def weights_folded_in_eval_mode_only():
    return Case(seeded(Folded), nn.MSELoss(), (X, Y), supervised)


class Smoothed(nn.Module):
    """Centers its features by an average that each call in training mode moves."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("center", torch.zeros(5))

    def forward(self, x):
        x = torch.tanh(self.body(x))
        if self.training:
            with torch.no_grad():
                self.center.lerp_(x.mean(0), 0.1)
        return self.head(functional.gelu(x - self.center))


@entry(
    REFUSED,
    fault="stateful",
    hard="a normalization of one's own, by a buffer that each call moves",
    source="practice (running averages)",
)
def running_average_in_training_mode():
    return Case(seeded(Smoothed), nn.MSELoss(), (X, Y), supervised)


@entry(RIGHT, hard="the same in eval mode", source="practice (running averages)")
def running_average_in_eval_mode():
    model = seeded(Smoothed)
    model(X)
    return Case(model.eval(), nn.MSELoss(), (X, Y), supervised, forms=ALL)
