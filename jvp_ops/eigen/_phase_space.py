"""Eigenpairs of Df on (θ, v) from those of H: two eigenvalues μ over each h, their vectors (x, cx)."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jvp_ops._sitting import BY_HAND, Sitting, Stop
from jvp_ops.eigen._certify import Cluster
from jvp_ops.eigen._iterate import columns_of
from jvp_ops.eigen._request import BLOCK, DENSE_ORDER, Request
from jvp_ops.eigen._result import Eigenpairs
from jvp_ops.eigen._rounding import Rounding
from jvp_ops.eigen._solve import solve
from jvp_ops.eigen._target import Target, conjugate_pairs
from jvp_ops.errors import NonFiniteError
from jvp_ops.krylov import inner
from jvp_ops.linear import Coupling
from jvp_ops.operators import TensorOperator

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
SLACK = 1e3  # units of the last place within which products of Df and of H have to agree
FAR = 1e9  # αh
LOOSE = 1e-2  # the tolerance of an end that is looked at only to see that it does not matter
MORE = 3  # rounds of asking for more of H before giving up on an interior maximum


def merits(coupling: Coupling, h: Floats, which: str) -> Floats:
    """Compute how good the better of the two μ over each h is.

    |μ|, Re μ and −Re μ, each of the better root, fall and then rise as functions of h (for β ≥ 0 they can be flat
    between, for β < 0 all is real): what is above a level is outside of an interval of h. |Im μ| rises and then falls.
    """
    return np.asarray(_keys(coupling, h, which).max(axis=-1, initial=-np.inf))


def _keys(coupling: Coupling, h: Floats, which: str) -> Floats:
    """Compute how good each of the two μ over each h is."""
    values = coupling.eigenvalues(h)
    keys = {"LM": np.abs(values), "LR": values.real, "SR": -values.real, "LI": np.abs(values.imag)}
    return np.asarray(keys[which])


def peak(coupling: Coupling) -> float:
    """Give the h of the largest |Im μ|: Im² = p(h) − t(h)²/4 is a parabola; infinite where h does not matter."""
    (t, s), (_, q) = coupling.trace, coupling.product
    return (2 * q / s - t) / s if s else np.inf


@dataclass
class _Ends:
    """What is solved of H so far: its lowest and its largest eigenvalues, within one budget."""

    coupling: Coupling
    base: TensorOperator
    request: Request
    sitting: Sitting
    before: int
    parts: dict[str, Eigenpairs] = field(default_factory=dict)

    def ask(self, end: str, count: int, start: Tensor | None, **loosely: Any) -> bool:
        """Solve one end for so many, from what is known of it; False where the budget forbids it."""
        count = min(count, self.base.shape[0] - 1)
        if end in self.parts and len(self.parts[end]) >= count:
            return True
        budget: dict[str, Any] = dict(loosely)
        if self.request.max_products is not None:
            budget["max_products"] = self.request.max_products - (self.base.products - self.before)
        known = self.parts[end].vectors if end in self.parts else start
        least = max(self.request.block or BLOCK, 0 if known is None else known.shape[1])
        if self.parts and (budget.get("max_products", least) < least or self.sitting.obstacle()):
            return False
        self.parts[end] = self.solve(end, replace(self.request, k=count, method="lanczos", start=known, **budget))
        return True

    def solve(self, end: str, request: Request) -> Eigenpairs:
        """Solve H itself for one end."""
        asked = replace(request, which=end, condition=False, prove_complete=False)
        return solve(self.base, asked.checked(self.base), Target(end), self.sitting)

    def values(self, end: str) -> Floats:
        """Give what is known of one end, best first."""
        return np.asarray(self.parts[end].values)


def phase_space_pairs(
    operator: TensorOperator, request: Request, sitting: Sitting, *, iterate: bool
) -> Eigenpairs | None:
    """Find the k best eigenpairs of Df by way of H's; None where no end of H's spectrum can give them.

    Parameters
    ----------
    operator : TensorOperator
        With a `phase_space`.
    request : Request
        Checked. Of its `start`, the θ parts serve; its budgets are of all solves of H together.
    sitting : Sitting
        Of all of them.
    iterate : bool
        Whether an option was given that only an iteration has, so that LAPACK must not serve.
    """
    assert operator.phase_space is not None
    coupling, base = operator.phase_space.coupling, operator.phase_space.base
    p, before = base.shape[0], base.products
    given = None if request.start is None else columns_of(operator, request.start, "start")[:p]
    ends, notes, cut = _Ends(coupling, base, request, sitting, before), list[str](), None
    if iterate and request.k >= p:
        return None
    try:
        if not iterate and (p <= DENSE_ORDER or 4 * request.k >= p):
            whole = Request(p, "LA", "dense", request.tol, request.float64, rng=request.rng, progress=request.progress)
            ends.parts["all"] = ends.solve("LA", whole)
        elif request.which == "LI":
            if not _solve_interior(ends, request.k, given):
                return None
        elif not _solve_ends(ends, request, given):
            cut = sitting.obstacle() or Stop.MAX_PRODUCTS
            why = f"{sitting.words(cut)} stopped the solve" if cut in BY_HAND else "the budget ran out"
            notes.append(f"{why} before both ends of H's spectrum were seen: better ones may be missed")
    except NonFiniteError as error:
        error.partial = None  # it would be of H
        raise
    parts = list(ends.parts.values())
    found, H = _candidates(coupling, parts), parts[0]
    chosen = Target(request.which).best(found.values, min(request.k, 2 * p))
    if tie := _tie(coupling, request, found, chosen):
        notes.append(tie)
    h, errors, values = found.h[chosen], found.bounds[chosen], found.values[chosen]
    vectors = _lifted(coupling, found, chosen)
    norm = max(part.norm for part in parts)
    reach = found.residuals[chosen], float(np.hypot(*coupling.gain)) * norm
    used = Rounding.unmeasured(operator, float64=request.float64).exact or operator
    residuals, agrees = _checked(operator, used, vectors, values, *reach)
    if not agrees:
        notes.append("products of Df do not agree with those of H: the residuals are larger than H's allow")
    bounds = coupling.bounds(h, errors, values)
    clusters = _clusters(coupling, h, errors, values, bounds)
    sure = found.converged[chosen]
    if any(sure[i] for cluster in clusters for i in cluster.members):
        notes.append("near a defective point only the mean of the two eigenvalues over an h is determined")
    narrow = operator.torch_dtype == torch.float32
    return Eigenpairs(
        values=values,
        vectors=vectors.to(torch.complex64) if narrow else vectors,
        parameters=operator.columns,
        residuals=residuals,
        bounds=bounds,
        converged=sure & agrees,
        which=request.which,
        k=request.k,
        tol=request.tol,
        method=f"{H.method} on H",
        rounding=max(part.rounding for part in parts),
        norm=norm,
        products=base.products - before + (_real_count(values) if used is operator else 0),
        float64_products=sum(part.float64_products for part in parts)
        + (0 if used is operator else _real_count(values)),
        seconds=sitting.seconds,
        stopped=cut or next((part.stopped for part in parts if part.stopped != Stop.CONVERGED), Stop.CONVERGED),
        complete=all(part.complete for part in parts),
        condition=coupling.condition(h, values),
        clusters=clusters,
        history=H.history,
        hessian_values=h,
        hessian_bounds=errors,
        notes=(*dict.fromkeys([note for part in parts for note in part.notes] + notes),),
        provenance=operator.identity(),
    )


def _solve_ends(ends: _Ends, request: Request, start: Tensor | None) -> bool:
    """Solve the end that most come from, and as much of the other as can matter.

    The k best μ lie over the k best h, and since the merit falls and then rises with h, those are at H's two ends.
    """
    rises = ends.coupling.trace[1] > 0
    first = "LA" if rises == (request.which != "SR") else "SA"
    second, k, coupling = "SA" if first == "LA" else "LA", request.k, ends.coupling

    def least() -> float:
        """Give the k-th best of what is found at the first end."""
        return float(np.sort(_keys(coupling, ends.values(first), request.which), axis=None)[-k])

    def beaten(h: Floats) -> bool:
        found = least()
        return bool(merits(coupling, h, request.which) <= found + 1e-9 * abs(found))

    ends.ask(first, -(-k // 2) if request.which == "SR" else k, start)  # there two complex μ over each h count
    if 2 * len(ends.values(first)) < k:
        return False
    if not beaten(ends.values(first)[-1]) and not ends.ask(first, k, None):
        return False
    if merits(coupling, _far(coupling, second), request.which) < least() - 1e-6:
        return True  # no h of that end, however far out, comes up to them
    if not ends.ask(second, 1, None, tol=LOOSE):
        return False
    outermost = ends.parts.pop(second)
    if outermost.stopped in (*BY_HAND, Stop.MAX_PRODUCTS, Stop.MAX_SECONDS):
        return False
    outward = outermost.bounds[0] if second == "LA" else -outermost.bounds[0]
    return beaten(outermost.values[0] + outward) or ends.ask(second, k, outermost.vectors)


def _far(coupling: Coupling, end: str) -> Floats:
    """Give an h so far out at an end that the merit there is its limit, or beyond all others."""
    return np.asarray((FAR if end == "LA" else -FAR) / (abs(coupling.trace[1]) or 1.0))


def _solve_interior(ends: _Ends, k: int, start: Tensor | None) -> bool:
    """Solve the end of H nearest to the largest |Im μ|; False where it is too far inside of the spectrum."""
    wanted, top = -(-k // 2), peak(ends.coupling)
    end = "LA" if top > 0 else "SA"
    for round_ in range(MORE):
        if not ends.ask(end, wanted * (1 + round_), start):
            return False
        h = ends.values(end)
        last = h[-1]
        beyond = last > top if end == "LA" else last < top
        if not beyond and (merits(ends.coupling, h, "LI") >= merits(ends.coupling, last, "LI")).sum() >= wanted:
            return True
    return False


@dataclass(frozen=True)
class _Candidates:
    """All μ over what is known of H, with what belongs to each."""

    values: Complexes
    h: Floats
    bounds: Floats
    residuals: Floats
    converged: NDArray[np.bool_]
    vectors: Tensor
    place: NDArray[np.intp]


def _candidates(coupling: Coupling, parts: list[Eigenpairs]) -> _Candidates:
    if len(parts) == 2:  # the ends may overlap: two solves of one eigenvalue differ by rounding, so they are counted
        low, high = sorted(parts, key=lambda part: part.which != "SA")
        kept = np.arange(len(high)) < len(low.vectors) - len(low)
        inside = torch.linalg.vector_norm(inner(low.vectors, high.vectors), dim=0) > 0.7  # where the low end has gaps
        kept &= ~inside.cpu().numpy()
    else:
        low, high, kept = parts[0], parts[0], np.zeros(len(parts[0]), dtype=bool)
    h, bounds, residuals, converged = (
        np.concatenate([getattr(low, name), getattr(high, name)[kept]])
        for name in ("values", "bounds", "residuals", "converged")
    )
    vectors = torch.cat([low.vectors, high.vectors[:, torch.from_numpy(kept).to(high.vectors.device)]], dim=1)
    place = np.repeat(np.arange(len(h)), 2)
    return _Candidates(
        coupling.eigenvalues(h).ravel(), h[place], bounds[place], residuals[place], converged[place], vectors, place
    )


def _lifted(coupling: Coupling, found: _Candidates, chosen: NDArray[np.intp]) -> Tensor:
    """Make the unit vectors (x, cx)."""
    factors = torch.from_numpy(coupling.vectors(found.h[chosen], found.values[chosen])).to(found.vectors.device)
    X = found.vectors[:, torch.from_numpy(found.place[chosen]).to(found.vectors.device)].to(torch.complex128)
    return torch.cat([X * factors[:, 0], X * factors[:, 1]])


def _real_count(values: Complexes) -> int:
    return int((values.imag == 0).sum() + 2 * (values.imag > 0).sum())


def _checked(
    operator: TensorOperator, used: TensorOperator, vectors: Tensor, values: Complexes, hessian: Floats, norm: float
) -> tuple[Floats, bool]:
    """Recompute the residuals with Df's own products, and see that they are no larger than H's residuals allow."""
    real = torch.from_numpy(np.flatnonzero(values.imag == 0)).to(vectors.device)
    upper = torch.from_numpy(np.flatnonzero(values.imag > 0)).to(vectors.device)
    columns = torch.cat([vectors[:, real].real, vectors[:, upper].real, vectors[:, upper].imag], dim=1)
    image = used.apply(columns.to(used.torch_dtype).contiguous()).double()
    parts = image.tensor_split([len(real), len(real) + len(upper)], dim=1)
    images = torch.empty_like(vectors)
    images[:, real] = parts[0].to(vectors.dtype)
    images[:, upper] = torch.complex(parts[1], parts[2])
    for i, *partner in conjugate_pairs(values):
        images[:, partner] = images[:, [i]].conj()
    R = images - vectors * torch.from_numpy(values).to(vectors.device)
    residuals = torch.linalg.vector_norm(R, dim=0).cpu().numpy()
    assert operator.phase_space is not None
    gain = float(np.hypot(*operator.phase_space.coupling.gain))
    rounding = SLACK * torch.finfo(operator.torch_dtype).eps * (1 + norm)
    return residuals, bool((residuals <= gain * hessian + rounding).all())


def _tie(coupling: Coupling, request: Request, found: _Candidates, chosen: NDArray[np.intp]) -> str | None:
    """Say where |μ| does not tell the last ones from all others: complex pairs of a constant product of roots."""
    flat = abs(coupling.product[1]) <= 1e-12 * max(abs(coupling.product[0]), abs(coupling.trace[1]))
    last = found.values[chosen]
    tied = int((last.imag != 0).sum())
    if request.which != "LM" or not flat or not tied:
        return None
    return (
        f"{tied} of the values are complex and of the same modulus {abs(last[last.imag != 0][0]):.6g} as every other "
        "complex pair: those listed are from the ends of H's spectrum"
    )


def _clusters(coupling: Coupling, h: Floats, errors: Floats, values: Complexes, bounds: Floats) -> tuple[Cluster, ...]:
    """Group the two eigenvalues over an h that its error does not tell apart: their mean is known to half of it."""
    groups = []
    t, s = coupling.trace
    for value in np.unique(h[np.isnan(bounds)]):
        members = np.flatnonzero((h == value) & np.isnan(bounds))
        mean = complex((t + s * value) / 2)
        groups.append(Cluster(tuple(members.tolist()), mean, float(abs(s) / 2 * errors[members].max())))
    return tuple(groups)
