"""What a model and a loss function must be for their loss to be one fixed function of θ."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from jvp_ops._autodiff import nodes_of
from jvp_ops._explained import explained
from jvp_ops.errors import InputError, NonFiniteError
from jvp_ops.losses.model._batches import Batch
from jvp_ops.losses.model._binding import Binding, Substitutes
from jvp_ops.losses.model._captured import OWN_KEYS, Captured
from jvp_ops.losses.model._containers import tensors_within
from jvp_ops.losses.model._evaluation import Evaluation, Objective, bound
from jvp_ops.losses.model._structures import all_tensors

ROUNDING = {torch.float64: 1e-8, torch.float32: 2e-5}  # of one computation, done twice


def refuse_unfit(model: nn.Module, captured: Captured, *, coupled: bool) -> None:
    """Refuse modules that nothing can be put into, and those whose output is random or mixes samples."""
    names = {id(module): name for name, module in model.named_modules()}
    for module in captured.modules:
        name, kind = names.get(id(module), ""), type(module).__name__
        where = f"module {name!r} ({kind})" if name else f"the model ({kind})" if module is model else f"a {kind}"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is TorchScript, into which θ cannot be put: pass the Python module it was made of"
            )
        if any(p is not None and is_lazy(p) for p in (*module._parameters.values(), *module._buffers.values())):
            raise InputError(f"{where} is lazy and has no shapes yet: run the model once on a batch first")
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise InputError(
                f"{where} has max_norm, by which each pass changes its weight in place, out of sight of derivatives: "
                "divide by the norm in forward, and use max_norm=None"
            )
        if not coupled:
            _refuse_mixing(module, where)
        drops = getattr(module, "p", 0) if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
        random = isinstance(module, nn.RReLU) or (isinstance(drops, Real) and float(drops) > 0)
        if module.training and random:
            raise InputError(
                f"{where} is in training mode, where its output is random or depends on the batch: call model.eval() "
                "first"
            )


def _refuse_mixing(module: nn.Module, where: str) -> None:
    if not isinstance(module, _BatchNorm):
        return
    if module.running_mean is None:
        raise InputError(
            f"{where} keeps no running statistics, so its output mixes the samples of a batch and the loss is no "
            "sum over samples: use track_running_stats=True, or another norm; or, where the data are one batch, say so "
            "by coupled=True"
        )
    if module.training:
        raise InputError(
            f"{where} is in training mode, where its output is random or depends on the batch: call model.eval() "
            "first; or, where the data are one batch, say so by coupled=True"
        )


def refuse_shared_memory(named: dict[str, Tensor], captured: Captured) -> None:
    """Refuse tensors that lie in a parameter's memory but are not it: moving one would move the other."""
    others = [
        (f"the buffer {name!r} of a {type(module).__name__}", tensor)
        for module in captured.modules
        for name, tensor in module.named_buffers(recurse=False)
    ]
    known = {id(tensor) for tensor in named.values()} | {id(tensor) for _, tensor in others}
    others += [(f"the tensor {name!r}", t) for number, (t, name) in captured.tensors.items() if number not in known]
    spans = sorted(_spans([(f"the parameter {name!r}", p) for name, p in named.items()], in_theta=True))
    spans = sorted([*spans, *_spans([(name, t) for name, t in others if t.is_leaf], in_theta=False)])
    furthest = {True: (0, ""), False: (0, "")}  # how far a tensor in θ, and any tensor, reaches
    for start, stop, name, in_theta in spans:
        reach, first = furthest[not in_theta]
        if start < reach:
            raise InputError(
                f"{first} and {name} share memory, so that training moves both with one: let both be the same "
                "torch.nn.Parameter, or .clone() one of them"
            )
        for kind in {False, in_theta}:
            furthest[kind] = max(furthest[kind], (stop, name))


def _spans(tensors: Sequence[tuple[str, Tensor]], *, in_theta: bool) -> Iterator[tuple[int, int, str, bool]]:
    for name, tensor in tensors:
        if tensor.layout == torch.strided and tensor.numel() > 0 and tensor.device.type != "meta":
            reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            yield start, start + (reach + 1) * tensor.element_size(), name, in_theta


def settle_padding(objective: Objective, binding: Binding, sample: Batch) -> None:
    """Hold a padding row constant only if nothing else trains it, as an output layer that shares the weight does."""
    if not binding.padded:
        return

    def value(leaves: list[Tensor]) -> Tensor:
        with bound(objective, binding, binding.substitutes(leaves, padding=False)) as at:
            return at.value(sample)

    release_trained_padding(binding, value)


def release_trained_padding(binding: Binding, value: Callable[[list[Tensor]], Tensor | None]) -> None:
    """Hold those padding rows no longer that a value, of leaves with the rows in them, depends on."""
    if not binding.padded:
        return
    leaves = binding.perturbed(0.1)
    found = value(leaves)
    if found is not None and found.requires_grad:
        slopes = zip(binding.named, torch.autograd.grad(found, leaves, allow_unused=True), strict=True)
        binding.release_padding({name for name, slope in slopes if _is_trained(binding, name, slope)})


def _is_trained(binding: Binding, name: str, slope: Tensor | None) -> bool:
    row = binding.padded.get(name)
    return row is not None and slope is not None and bool(slope[row].any())


def fit(objective: Objective, binding: Binding, sample: Batch) -> None:
    """Look at one pass with what functions close over as it is; where that does not run, cast as the model is."""
    ways = [lambda: None, binding.cast_closures, *([binding.keep_narrow] if binding.is_wide else [])]
    errors = []
    for change in ways:
        change()
        try:
            return look_at_one_pass(objective, binding, sample)
        except InputError as error:
            if error.__cause__ is None:  # it runs, and is refused
                raise
            errors.append(error)
    raise errors[0]


def look_at_one_pass(objective: Objective, binding: Binding, sample: Batch) -> None:
    """Run the model on samples: see what it changes, and refuse what is random, not finite, or not in θ."""
    leaves, versions = binding.leaves(binding.initial()), [tensor._version for tensor in sample.tensors]
    foreign, names = strangers(binding, objective)
    with bound(objective, binding, binding.substitutes(leaves) | foreign) as at:
        first, second = at.outputs(sample), at.outputs(sample)
        binding.see_changes()
        _refuse_random(first, second, keeps_state=binding.keeps_state)
        value = at.value(sample)
        binding.see_changes()  # the loss function's, too
    if [tensor._version for tensor in sample.tensors] != versions:
        raise InputError(
            "the model or the loss function changes the data in place (x.clamp_(), a ReLU(inplace=True) that comes "
            "first): write it out of place, or begin with x = x.clone()"
        )
    refuse_strangers(value, [*leaves, *sample.tensors], names)
    _refuse_kept_outside(objective, binding, leaves, value, sample)
    _refuse_kept_values(objective, binding, leaves, value, sample)
    own = None if binding.is_compared else binding.as_it_came()
    if own is not None and own.dtype in ROUNDING:
        _refuse_other_value(objective, own, sample.to(own.device, own.dtype))
    binding.is_compared = True


def _refuse_kept_outside(
    objective: Objective, binding: Binding, leaves: list[Tensor], value: Tensor, sample: Batch
) -> None:
    """Run it again with other tensors as θ: refuse what is random, or still reads the first ones."""
    others = binding.leaves(leaves)
    with bound(objective, binding, binding.substitutes(others)) as at:
        again = at.value(sample)
    before = {id(leaf) for leaf in leaves}
    if any(id(leaf) in before for leaf in _strangers(again, others)):
        raise InputError(
            "the loss reads what an earlier pass computed of the parameters and something outside the modules keeps "
            "(functools.cache, a global): clear it at the start of the forward pass"
        )
    if bool(torch.isfinite(value)) and not torch.equal(value, again):
        raise InputError("the loss gave two values for one input: it is random, or keeps state; draw numbers before")


def strangers(binding: Binding, objective: Objective) -> tuple[Substitutes, dict[int, str]]:
    """Let what requires gradients and cannot be in θ do so, and name it."""
    return binding.strangers([*objective.model.parameters(), *_parameters_of(objective.function)])


def refuse_strangers(value: Tensor, known: Sequence[Tensor], names: dict[int, str]) -> None:
    """Refuse what a value reads that requires gradients and is not known."""
    for leaf in _strangers(value, known):
        name = names.get(id(leaf), "a parameter" if isinstance(leaf, nn.Parameter) else None)
        if name is not None:
            raise InputError(
                f"the loss reads {name} of shape {tuple(leaf.shape)}, which requires gradients but is no part of θ: "
                "call .requires_grad_(False) on it if it is a constant, or make it a parameter of the model; or it was "
                "computed from the parameters before, and kept: clear what is kept first"
            )


def _parameters_of(function: Any) -> list[Tensor]:
    return list(function.parameters()) if isinstance(function, nn.Module) else []


def _refuse_random(first: Any, again: Any, *, keeps_state: bool) -> None:
    for one, other in zip(all_tensors(first), all_tensors(again), strict=True):
        if one.is_floating_point() and bool(torch.isnan(one).any()):
            raise NonFiniteError(f"the model's outputs hold {int(torch.isnan(one).sum())} NaN of {one.numel()} entries")
        if not torch.equal(one, other):
            raise InputError(
                "the model gave two outputs for one input: it changes what it keeps with each call, so that the loss "
                "is no function of θ alone"
                if keeps_state
                else "the model gave two outputs for one input: it is random; call model.eval() first"
            )


def _strangers(value: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """List the leaves of a graph that are not known."""
    ours = {id(tensor) for tensor in known}
    leaves = (getattr(node, "variable", None) for node in nodes_of([value]))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) not in ours]


def _refuse_kept_values(
    objective: Objective, binding: Binding, leaves: list[Tensor], value: Tensor, sample: Batch
) -> None:
    """Refuse a plain tensor that the loss reads in the place of a parameter, as a value kept in eval mode is."""
    if not value.requires_grad:
        return
    with explained("the loss cannot be differentiated"):
        slopes = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    unused = [name for name, slope in zip(binding.named, slopes, strict=True) if slope is None]
    modules = dict(objective.model.named_modules())
    for name in unused:
        path = name.split(".")[:-1]
        for depth in range(len(path), -1, -1):
            owner = ".".join(path[:depth])
            for key, tensor in _kept_tensors(modules[owner]) if owner in modules else ():
                if _is_read(objective, binding, leaves, tensor, value, sample):
                    raise InputError(
                        f"the loss does not depend on the parameter {name!r}, but on the tensor {key!r} that module "
                        f"{owner!r} keeps: is it a value computed before? Clear it (in training mode, or by None) "
                        "before the model is handed over; if it is a constant, register_buffer makes it one"
                    )


def _kept_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through the floating tensors that a module holds, neither parameters nor buffers, in containers too."""
    for key, value in vars(module).items():
        if key not in OWN_KEYS:
            yield from tensors_within(key, value)


def _is_read(
    objective: Objective, binding: Binding, leaves: list[Tensor], tensor: Tensor, value: Tensor, sample: Batch
) -> bool:
    substitutes = binding.substitutes(leaves)
    substitutes[id(tensor)] = 1.5 * substitutes.get(id(tensor), tensor.detach()) + 0.125
    with bound(objective, binding, substitutes) as at:
        return not torch.equal(at.value(sample), value)


def _refuse_other_value(objective: Objective, binding: Binding, sample: Batch) -> None:
    """Refuse a loss whose value with θ in the modules is not that of the user's own parameters in their place."""
    found = None
    with warnings.catch_warnings(), suppress(Exception):  # what does not run as it came is no witness
        warnings.simplefilter("ignore")
        found = _values_apart(objective, binding, sample)
    if found is not None:
        raise InputError(
            f"the loss of {sample.samples} samples is {found[0]:.9g} when θ is put into the model, and {found[1]:.9g} "
            "by the user's own call (or the outputs differ): code looks at what the parameters are "
            "(isinstance(p, nn.Parameter), p.requires_grad, dictionaries keyed by parameters), and in a pass they are "
            "other tensors: write it by names instead"
        )


def _values_apart(objective: Objective, binding: Binding, sample: Batch) -> tuple[float, float] | None:
    """Give the value in a pass and by the user's own call, where they are not one."""

    def in_a_pass() -> list[Tensor]:
        substitutes = binding.substitutes(binding.leaves(binding.initial()))
        with bound(objective, binding, substitutes) as at:
            found = _run(at, sample)
        written = any(not torch.equal(substitutes[number], own) for number, own in binding.originals.items())
        return [] if written else found

    ours = in_a_pass()
    if not ours:  # a call would write into the user's parameters
        return None
    with binding.untouched() as substitutes, bound(objective, binding, substitutes) as at:
        theirs = _run(at, sample)
    if _agree(ours, theirs, binding.dtype) or not _agree(ours, in_a_pass(), binding.dtype):
        return None  # the latter is random, or changes with each call
    return float(ours[-1]), float(theirs[-1])


def _run(at: Evaluation, sample: Batch) -> list[Tensor]:
    outputs = at.outputs(sample)
    return [tensor.detach().clone() for tensor in (*all_tensors(outputs), at.loss(outputs, sample))]


def _agree(some: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Say whether outputs and their loss are the same but for rounding, which may be all that a small loss is."""
    if len(some) != len(others) or any(a.shape != b.shape for a, b in zip(some, others, strict=True)):
        return False
    largest = max(float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) for a in some if a.numel())
    floor, rounding = 10 * torch.finfo(dtype).eps * largest, ROUNDING[dtype]
    for one, other in zip(some, others, strict=True):
        size = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()) if one.numel() else 0.0
        if not torch.allclose(one, other, rtol=rounding, atol=rounding * size + floor, equal_nan=True):
            return False
    return True
