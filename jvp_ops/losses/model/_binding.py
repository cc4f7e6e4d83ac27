"""θ in the user's own modules: they hold it while a pass runs, and are as they were when it ends.

In place, not in a copy: closures, globals and other modules that read the parameters then see θ too, and nothing need
be copied that cannot be. What the modules were when they were handed over is kept, and is what every pass sees. The
containers that they hold stay the same objects, which then hold what they held; large ones without tensors are left
alone.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from jvp_ops._autodiff import pinned, recording
from jvp_ops.losses.model._captured import OWN_KEYS, Captured
from jvp_ops.losses.model._containers import KINDS, Containers, is_alike, standing_in

Substitutes = dict[int, Tensor]


class Binding:
    """The modules that a loss reaches, with all their values as they were, in one dtype on one device.

    Parameters
    ----------
    captured : Captured
        The modules and tensors that the model and the loss function reach.
    named : mapping of str to Tensor
        The parameters that make up θ, by name, in order.
    device, dtype
        Where the passes run, and in which dtype.

    Attributes
    ----------
    keeps_state : bool
        A forward pass was seen to change attributes or buffers of a module: each one then starts from the same.
    is_compared : bool
        A pass was held against the user's own call.
    """

    def __init__(
        self, captured: Captured, named: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device, self.dtype, self.named = device, dtype, dict(named)
        self.modules = tuple(captured.modules)
        self.keeps_state = self.is_compared = False
        self._spaces = [vars(module) for module in self.modules]  # kept, and so their numbers, alive
        self._dicts = [dict(space) for space in self._spaces]
        held = [(key in OWN_KEYS, value) for attributes in self._dicts for key, value in attributes.items()]
        self._own = {id(value): copy.copy(value) for own, value in held if own and type(value) in KINDS}
        apart = {*self._own, *map(id, self._spaces)}
        self._containers = Containers((value for own, value in held if not own), apart)
        self._standing: dict[int, Any] = {}  # what stands in for what, while a pass runs
        self._theta = {id(tensor) for tensor in self.named.values()}
        self._called = captured.names
        self._met_as = {number: f"the tensor {name!r}" for number, (_, name) in captured.tensors.items()}
        self._originals = _originals(captured)  # which also keeps them, and so their numbers, alive
        with torch.inference_mode(False), torch.no_grad():
            self._source = {number: tensor.detach().clone() for number, tensor in self._originals.items()}
        buffers = (buffer for module in self.modules for buffer in module._buffers.values())
        self._narrow: list[bool] = []  # shared by all that `to` makes, as the next
        self._cast_too: dict[torch.dtype, bool] = {}  # whether closed-over tensors are cast, for all that `to` makes
        own = [m for m in self.modules if captured.names[id(m)].split(".")[0] == "model"]
        self._in_model = {id(t) for module in own for t in (*module._parameters.values(), *module._buffers.values())}
        self._written = {id(buffer) for buffer in buffers}  # which a forward pass may write into
        self._cast = self._in_own_dtype()
        self._padded = _padding_rows(self.modules, self._theta)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Binding":
        """Give the same modules on another device or in another dtype, cast from the values as they came."""
        other = object.__new__(Binding)
        other.__dict__.update(self.__dict__)
        other.device, other.dtype = device, dtype
        other._cast = other._in_own_dtype()
        return other

    def cast_closures(self) -> None:
        """Cast the tensors that functions close over, too: some operations do not take two precisions."""
        self._cast_too[self.dtype] = True
        self._cast = self._in_own_dtype()

    @property
    def is_wide(self) -> bool:
        """Whether float32 that the code names is float64."""
        return self.dtype == torch.float64 and not self._narrow

    def keep_narrow(self) -> None:
        """Leave float32 that the code names as it is: something that it makes does not go with float64."""
        self._narrow.append(True)

    @property
    def recurrent(self) -> bool:
        """Whether there are recurrent layers, for which cuDNN has no second derivatives."""
        return any(isinstance(module, nn.RNNBase) for module in self.modules)

    @property
    def constants(self) -> list[Tensor]:
        """All values that are not in θ, in the order of the modules, in the dtype that they came in."""
        return [tensor for number, tensor in self._source.items() if number not in self._theta]

    @property
    def padded(self) -> dict[str, int]:
        """Which row of which embedding is held constant, as padding."""
        return {name: self._padded[id(tensor)] for name, tensor in self.named.items() if id(tensor) in self._padded}

    def release_padding(self, names: set[str]) -> None:
        """Hold the padding rows of these embeddings no longer, in this and all that `to` makes."""
        for name in names:
            del self._padded[id(self.named[name])]

    @property
    def held(self) -> list[Tensor]:
        """All tensors that are held anyway, whatever is recorded."""
        return list(self._cast.values())

    def initial(self) -> list[Tensor]:
        """Give the values that the parameters of θ came with, as real tensors."""
        return [_as_real(self._cast[id(tensor)]).detach() for tensor in self.named.values()]

    def leaves(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Make the tensors that gradients are taken in: real, one for each parameter of θ."""
        with torch.inference_mode(False):
            return [part.detach().clone().requires_grad_() for part in parts]

    def substitutes(self, leaves: Sequence[Tensor], *, padding: bool = True) -> Substitutes:
        """Say what stands in for every tensor of the modules, by the number of the original."""
        bound = dict(self._cast)
        with recording():
            for original, leaf in zip(self.named.values(), leaves, strict=True):
                value = torch.view_as_complex(leaf) if original.is_complex() else leaf
                bound[id(original)] = self._with_padding(id(original), value) if padding else value
        return bound

    def _with_padding(self, number: int, value: Tensor) -> Tensor:
        """Hold the padding row of an embedding: torch never gives it a gradient, so that training never moves it."""
        if number not in self._padded:
            return value
        own = self._cast[number]
        row = torch.arange(len(own), device=own.device) == self._padded[number]
        return torch.where(row[:, None], own, value)

    def reading(self, first: Substitutes, leaves: Sequence[Tensor]) -> Substitutes:
        """Let other leaves stand in, also for what stands in by `first` already."""
        second = self.substitutes(leaves)
        return second | {id(tensor): second[number] for number, tensor in first.items() if number in self._theta}

    def perturbed(self, scale: float) -> list[Tensor]:
        """Make leaves beside the values that the parameters came with: `scale` in units of each one's own size."""
        random, beside = torch.Generator().manual_seed(0), []
        for own in self.initial():
            fan_in = own.numel() / len(own) if own.ndim > 1 else 1.0
            size = max(float(own.double().square().mean().sqrt()), fan_in**-0.5)
            noise = torch.randn(own.shape, generator=random, dtype=torch.float64).to(own)
            beside.append(own + scale * size * noise)
        return self.leaves(beside)

    @contextmanager
    def holding(self, substitutes: Substitutes) -> Iterator[None]:
        """Let the modules hold other tensors, and put them back as they were; one thread at a time."""
        with pinned(self.device, self.dtype, recurrent=self.recurrent), _uncached():
            before = [vars(module) for module in self.modules], self._containers.contents(), self._standing
            try:
                self.install(substitutes)
                yield
            finally:
                for module, attributes in zip(self.modules, before[0], strict=True):
                    object.__setattr__(module, "__dict__", attributes)
                self._containers.restore(before[1])
                self._standing = before[2]

    def install(self, substitutes: Substitutes) -> None:
        """Give each module the attributes that it was handed over with, and the tensors that stand in for its own."""
        standing: dict[int, Any] = dict(substitutes)
        spaces: list[dict[str, Any]] = [{} for _ in self.modules]
        standing.update(zip(map(id, self._spaces), spaces, strict=True))
        standing.update({number: standing_in(held, substitutes) for number, held in self._own.items()})
        self._containers.rebuild(standing)
        for module, attributes, fresh in zip(self.modules, self._dicts, spaces, strict=True):
            fresh.update({key: standing.get(id(value), value) for key, value in attributes.items()})
            if self.keeps_state:
                fresh["_buffers"] = {k: None if b is None else b.clone() for k, b in fresh["_buffers"].items()}
            _run_plainly(module, fresh)
            object.__setattr__(module, "__dict__", fresh)
        self._containers.restore(self._containers.first_contents(standing))
        self._standing = standing

    def see_changes(self) -> None:
        """After a forward pass: note whether it left other numbers, tensors or content in the modules than it found."""
        for module, attributes in zip(self.modules, self._dicts, strict=True):
            now = vars(module)
            for key in now.keys() | attributes.keys():
                self.keeps_state |= not is_alike(now.get(key), self._found(attributes.get(key)))
        self.keeps_state |= self._containers.are_changed(self._standing)
        for number, tensor in self._cast.items():
            self.keeps_state |= number in self._written and tensor._version > 0
        self._cast = self._in_own_dtype()  # as they came, if the pass has written into them

    def _found(self, value: Any) -> Any:
        """Say what a pass finds where this was handed over."""
        own = self._own.get(id(value))
        return self._standing.get(id(value), value) if own is None else standing_in(own, self._standing)

    def as_it_came(self) -> "Binding | None":
        """Give the same modules in the dtype and on the device that they came with; None if that needs a cast."""
        kinds = {(tensor.device, tensor.dtype.to_real()) for tensor in self.named.values()}
        if len(kinds) > 1 or self.has_changed:
            return None
        own = self.to(*kinds.pop())
        cast = ((own._cast[number], source) for number, source in self._source.items())
        return own if all(a.dtype == b.dtype and a.device == b.device for a, b in cast) else None

    @property
    def originals(self) -> dict[int, Tensor]:
        """The user's own parameters, in θ or not."""
        return {n: t for n, t in self._originals.items() if n in self._theta or isinstance(t, nn.Parameter)}

    @property
    def has_changed(self) -> bool:
        """Whether one of the user's parameters has other values than it came with."""
        return not all(torch.equal(tensor, self._source[number]) for number, tensor in self.originals.items())

    @contextmanager
    def untouched(self) -> Iterator[Substitutes]:
        """Substitute all but the user's own parameters, whose values are put back if a pass writes into them."""
        own = self.originals
        try:
            yield {number: tensor.clone() for number, tensor in self._cast.items() if number not in own}
        finally:
            with torch.no_grad():
                for number, tensor in own.items():
                    if not torch.equal(tensor, self._source[number]):
                        tensor.data.copy_(self._source[number])

    def strangers(self, chosen: Sequence[Tensor]) -> tuple[Substitutes, dict[int, str]]:
        """Let tensors that require gradients but cannot be in θ do so, so that a graph shows whether they are read.

        Parameters
        ----------
        chosen : sequence of Tensor
            What could be in θ, and is a constant if it is not.

        Returns
        -------
        substitutes
            For the tensors that the loss function or a plain attribute holds.
        names
            Of what stands in for them, and of the originals.
        """
        known, found, names = {id(tensor) for tensor in chosen}, dict[int, Tensor](), dict[int, str]()
        called = {
            id(
                parameter
            ): f"the parameter {name!r} of {self._called.get(id(module), 'the model')} ({type(module).__name__})"
            for module in self.modules
            for name, parameter in module.named_parameters(recurse=False)
        }
        for number, tensor in self._originals.items():
            if tensor.requires_grad:
                name = called.get(number, self._met_as.get(number, "a tensor"))
                names[number] = name
                if number not in known:
                    found[number] = self._cast[number].clone().requires_grad_()
                    names[id(found[number])] = name
        return found, names

    def _in_own_dtype(self) -> Substitutes:
        with torch.inference_mode(False), torch.no_grad():
            made = {}
            for number, tensor in self._source.items():
                cast = number in self._in_model or self._cast_too.get(self.dtype, False)
                moved = tensor.to(self.device, _dtype_like(tensor.dtype, self.dtype) if cast else tensor.dtype)
                made[number] = moved.clone() if moved is tensor and number in self._written else moved
            return made


def _originals(captured: Captured) -> dict[int, Tensor]:
    """List parameters, buffers and constants that are numbers of their own (not computed from others)."""
    found: dict[int, Tensor] = {}
    for module in captured.modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found[id(tensor)] = tensor
    for number, (tensor, _) in captured.tensors.items():
        if tensor.is_leaf and tensor.layout == torch.strided and (tensor.is_floating_point() or tensor.is_complex()):
            found.setdefault(number, tensor)
    return {number: tensor for number, tensor in found.items() if not tensor.is_meta}


def _padding_rows(modules: Sequence[nn.Module], theta: set[int]) -> dict[int, int]:
    """Find the padding row of each weight in θ that embeddings of one padding row hold, and nothing else."""
    users: dict[int, list[nn.Module]] = {}
    for module in modules:
        for tensor in module._parameters.values():
            users.setdefault(id(tensor), []).append(module)
    rows = {}
    for number, owners in users.items():
        held = {owner.padding_idx if isinstance(owner, nn.Embedding) else None for owner in owners}
        padding = held.pop()
        if number in theta and not held and padding is not None:
            rows[number] = padding % len(next(iter(owners[0].parameters(recurse=False))))
    return rows


@contextmanager
def _uncached() -> Iterator[None]:
    """Compute parametrized weights anew, also within the user's own ``parametrize.cached()``."""
    before = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = before


def _run_plainly(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Let a compiled module run as it was written: compiled code has no second derivatives."""
    if attributes.get("_compiled_call_impl") is not None:
        attributes["_compiled_call_impl"] = None
    original = attributes.get("_modules", {}).get("_orig_mod")
    if original is not None and "dynamo_ctx" in attributes:
        attributes["forward"] = original


def _dtype_like(dtype: torch.dtype, real: torch.dtype) -> torch.dtype:
    """Give a tensor's dtype in the precision of `real`: complex stays complex, integers and booleans stay."""
    if dtype.is_complex:
        return real.to_complex()
    return real if dtype.is_floating_point else dtype


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
