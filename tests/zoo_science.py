"""Physics, meta-learning, and other models with derivatives or models inside."""

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from zoo_entry import REFUSED, RIGHT, Case, entry, numbers, seeded, supervised

X, Y = numbers(1, 8, 4), numbers(2, 8, 3)
ONE = ("one batch",)


def net(inputs, outputs, hidden=5):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def given(model, loss_function, batch):
    return model(**batch)


# --- derivatives inside -------------------------------------------------------------------------------------------


class Physics(nn.Module):
    """Solves u'' = -sin(x) u on a line, with an unknown coefficient of no dimensions."""

    def __init__(self):
        super().__init__()
        self.u, self.coefficient = net(1, 1), nn.Parameter(torch.tensor(0.7))

    def forward(self, inside, boundary):
        x = inside.detach().requires_grad_()
        u = self.u(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return bend + self.coefficient * torch.sin(x) * u, self.u(boundary)


def residuals(outputs, targets):
    inside, boundary = outputs
    return inside.square().mean() + 10 * functional.mse_loss(boundary, targets)


PHYSICS = ((numbers(3, 9, 1), numbers(4, 2, 1)), torch.tensor([[0.0], [1.0]], dtype=torch.float64))
LINE = "a third and fourth derivative; fewer boundary points than inner ones"


@entry(RIGHT, hard=LINE, source="practice (physics-informed networks)")
def physics_informed_network_with_coupled_batches():
    return Case(seeded(Physics), residuals, PHYSICS, supervised, {"coupled": True}, forms=ONE)


@entry(
    REFUSED,
    fault="no rows",
    hard=f"{LINE}: no rows to cut by, and nothing says so",
    source="practice (physics-informed networks)",
)
def physics_informed_network_in_batches():
    return Case(seeded(Physics), residuals, PHYSICS, supervised, forms=ONE)


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = net(1, 1)

    def forward(self, positions):
        with torch.enable_grad():
            r = positions.detach().requires_grad_()
            apart = (r[:, :, None] - r[:, None]).square().sum(-1) + torch.eye(3, dtype=r.dtype)
            energy = self.energy(torch.exp(-apart)[..., None]).sum((1, 2, 3))
            force = torch.autograd.grad(-energy.sum(), r, create_graph=self.training, retain_graph=True)[0]
        return {"energy": energy, "force": force}


def matched(outputs, targets):
    return functional.mse_loss(outputs["energy"], targets[0]) + 9 * functional.mse_loss(outputs["force"], targets[1])


ATOMS = (numbers(5, 7, 3, 3), (numbers(6, 7), numbers(7, 7, 3, 3)))


@entry(
    RIGHT,
    hard="forces are a gradient inside the forward pass, with a graph in training mode only",
    source="atomistic-machine-learning/schnetpack: Make create_graph disabling optional",
)
def forces_and_energies_in_training_mode():
    return Case(seeded(Potential), matched, ATOMS, supervised)


@entry(
    REFUSED,
    fault="no gradient",
    hard="in eval mode the forces are constants to autograd, so that most of the loss has no gradient",
    source="atomistic-machine-learning/schnetpack: Make create_graph disabling optional",
)
def forces_and_energies_in_eval_mode():
    return Case(seeded(Potential).eval(), matched, ATOMS, supervised)


class Learner(nn.Module):
    """Adapts to each task by two steps of gradient descent before it answers."""

    def __init__(self, create_graph):
        super().__init__()
        self.base, self.rate, self.create_graph = net(1, 1), nn.Parameter(torch.tensor(0.3)), create_graph

    def forward(self, x, y, query):
        return torch.stack([self.answer(*task) for task in zip(x, y, query, strict=True)])

    def answer(self, x, y, query):
        fast = dict(self.base.named_parameters())
        for _ in range(2):
            loss = functional.mse_loss(functional_call(self.base, fast, x), y)
            steps = torch.autograd.grad(loss, list(fast.values()), create_graph=self.create_graph)
            fast = {name: p - self.rate * g for (name, p), g in zip(fast.items(), steps, strict=True)}
        return functional_call(self.base, fast, query)


TASKS = ((numbers(8, 5, 3, 1), numbers(9, 5, 3, 1), numbers(10, 5, 4, 1)), numbers(11, 5, 4, 1))


@entry(
    RIGHT,
    hard="gradients of the model's own parameters inside its forward pass; a learned rate of no dimensions",
    source="practice (model-agnostic meta-learning)",
)
def meta_learning_through_two_steps():
    return Case(seeded(lambda: Learner(True)), nn.MSELoss(), TASKS, supervised)


@entry(
    REFUSED,
    fault="no gradient",
    hard="the first-order variant drops a part of the gradient on purpose",
    source="practice (first-order meta-learning)",
)
def first_order_meta_learning():
    return Case(seeded(lambda: Learner(False)), nn.MSELoss(), TASKS, supervised)


# --- models that make or call models ------------------------------------------------------------------------------


class Hyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.maker, self.context = net(2, 15), nn.Parameter(torch.randn(2))
        self.target = nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x):
        made = self.maker(self.context)
        return functional_call(self.target, {"weight": made[:12].view(3, 4), "bias": made[12:]}, x)


@entry(
    RIGHT,
    hard="a network makes the weights of another, called by functional_call inside functional_call",
    source="practice (hypernetworks)",
)
def hypernetwork():
    return Case(seeded(Hyper), nn.MSELoss(), (X, Y), supervised, forms=("one batch", "ragged batches", "data loader"))


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        stacked, _ = stack_module_state([net(4, 3) for _ in range(3)])
        self.members = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(p.detach()) for name, p in stacked.items()}
        )
        self.shape = [net(4, 3).to("meta")]

    def forward(self, x):
        weights = {name.replace("_", "."): p for name, p in self.members.items()}
        return vmap(lambda w: functional_call(self.shape[0], w, (x,)))(weights).mean(0)


@entry(
    RIGHT,
    hard="vmap inside the forward pass",
    source="pytorch/pytorch: torch.func.functional_call works with func.vmap but breaks for func.grad",
)
def ensemble_by_vmap():
    return Case(seeded(Ensemble), nn.MSELoss(), (X, Y), supervised)
