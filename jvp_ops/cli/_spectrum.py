"""``jvp-ops spectrum``: train, linearize, and find both ends of the spectrum of Df with bounds."""

import argparse
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jvp_ops.cli._command import INTERRUPTED, Command, status_of
from jvp_ops.cli._options import add_budget_of_time, add_problem_options, check_positive, show_progress, trained
from jvp_ops.cli._output import add_output_options, deliver, run_folder, settings_of
from jvp_ops.errors import ConvergenceError, InputError

if TYPE_CHECKING:
    from jvp_ops.data import Dataset
    from jvp_ops.eigen import Eigenpairs
    from jvp_ops.losses import TwoLayerLoss
    from jvp_ops.operators import JacobianOperator


STOPPED = "stopped by Ctrl-C before anything was found"


def _options(parser: argparse.ArgumentParser) -> None:
    add_problem_options(parser)
    parser.add_argument("--k", type=int, default=10, metavar="N", help="eigenvalues at each end; default: 10")
    parser.add_argument("--tol", type=float, metavar="T", help="residual relative to ‖H‖; default: 1e-5, float64 1e-10")
    parser.add_argument("--max-products", type=int, metavar="N", help="budget of the solver at each end; default: none")
    add_budget_of_time(parser, " at each end")
    parser.add_argument("--method", default="auto", choices=("auto", "lanczos", "dense", "scipy"), help="default: auto")
    parser.add_argument(
        "--prove", action="store_true", help="prove by inertia of the dense matrix that none was missed"
    )
    add_output_options(parser, figure=False)


@dataclass(frozen=True)
class Spectrum:
    """What the command found."""

    data: "Dataset"
    settings: dict[str, Any]
    n: int
    loss_before: float
    loss_after: float
    train_seconds: float
    linearize_seconds: float
    identity: dict[str, Any]
    smallest: "Eigenpairs | str"  # of Df, where H is largest; or why there are none
    largest: "Eigenpairs | str"  # of Df, where H is lowest; or why there are none

    @property
    def sharpness(self) -> float | None:
        """The largest eigenvalue of H."""
        return None if isinstance(self.smallest, str) else float(_given(self.smallest.hessian_values)[0])

    @property
    def sharpness_bound(self) -> float | None:
        """Its bound."""
        return None if isinstance(self.smallest, str) else float(_given(self.smallest.hessian_bounds)[0])

    @property
    def threshold(self) -> float | None:
        """Where gradient descent becomes unstable: 2/α less the weight decay; None where α is 0."""
        lr = self.settings["lr"]
        threshold = math.inf if lr == 0 else 2 / lr - self.settings["weight_decay"]
        return threshold if math.isfinite(threshold) else None

    def record(self) -> dict[str, Any]:
        """Give all figures as a JSON-able dict."""
        return {
            "samples": len(self.data),
            "n": self.n,
            "loss": {"before": self.loss_before, "after": self.loss_after},
            "seconds": {"train": self.train_seconds, "linearize": self.linearize_seconds},
            "sharpness": self.sharpness,
            "sharpness_bound": self.sharpness_bound,
            "threshold": self.threshold,
            "smallest": _record(self.smallest),
            "largest": _record(self.largest),
        }


def _run(arguments: argparse.Namespace) -> int:
    """Compute, write the run folder, and print."""
    from jvp_ops._checks import finite_number

    check_positive(arguments, "k", "max_products")
    for value, name in ((arguments.tol, "--tol"), (arguments.max_seconds, "--max-seconds")):
        if value is not None:
            finite_number(value, name, least=0)
    folder = run_folder(arguments)
    found = compute(arguments)
    ends = {end: pairs for end in ("smallest", "largest") if not isinstance(pairs := getattr(found, end), str)}
    deliver(
        arguments,
        folder,
        text=text(found),
        record=found.record(),
        arrays={f"{end}_{name}": array for end, pairs in ends.items() for name, array in pairs.arrays().items()},
        identity=found.identity,
    )
    stopped = STOPPED in (found.smallest, found.largest)
    return INTERRUPTED if stopped else status_of(*(pairs.stopped for pairs in ends.values()))


def compute(arguments: argparse.Namespace) -> Spectrum:
    """Train, linearize, and solve both ends."""

    def fits(loss: "TwoLayerLoss") -> None:
        if arguments.k >= (n := loss.parameters.size):
            raise InputError(f"--k {arguments.k} is out of range: Df is {n} × {n}, of which at most {n - 1} are found")

    made = trained(arguments, fits)
    began = time.perf_counter()
    Df = made.f.jacobian(made.theta)
    linearized = time.perf_counter()
    options = {"tol": arguments.tol, "rng": arguments.seed, "method": arguments.method}
    options |= {"max_products": arguments.max_products, "max_seconds": arguments.max_seconds}
    options |= {"prove_complete": arguments.prove, "progress": show_progress(arguments)}
    smallest = _end(Df, arguments.k, "SA", options)
    cut = smallest == STOPPED or (not isinstance(smallest, str) and status_of(smallest.stopped) == INTERRUPTED)
    largest = "not solved, since the other end was interrupted" if cut else _end(Df, arguments.k, "LA", options)
    return Spectrum(
        data=made.data,
        settings=settings_of(arguments),
        n=made.loss.parameters.size,
        loss_before=float(made.loss.value(made.start)),
        loss_after=float(made.loss.value(made.theta)),
        train_seconds=made.seconds,
        linearize_seconds=linearized - began,
        identity=Df.identity(),
        smallest=smallest,
        largest=largest,
    )


def _end(Df: "JacobianOperator", k: int, which: str, options: dict[str, Any]) -> "Eigenpairs | str":
    """Solve one end; where nothing converges, say why, and let the other end stand."""
    from jvp_ops.eigen import eigenpairs

    try:
        return eigenpairs(Df, k, which, **options)
    except ConvergenceError as error:
        return str(error)
    except KeyboardInterrupt:
        return STOPPED


def _given(array: Any) -> Any:
    """Narrow what a mapped result always has."""
    assert array is not None
    return array


def _record(pairs: "Eigenpairs | str") -> dict[str, Any]:
    return {"values": [], "notes": [pairs]} if isinstance(pairs, str) else pairs.record()


def text(found: Spectrum) -> str:
    """Lay the results out for a person."""
    s = found.settings
    pixels = found.data.image_shape[0] * found.data.image_shape[1]
    lines = [
        f"{found.data.name}: {len(found.data)} samples; network {pixels}-{s['hidden']}-{found.data.classes}; "
        f"Df is {found.n} × {found.n}; {s['dtype']} on {s['device']}",
        f"training: {s['steps']} steps of gradient descent at lr {s['lr']:g}, loss {found.loss_before:.4f} → "
        f"{found.loss_after:.4f}, {found.train_seconds:.2f} s; linearized in {found.linearize_seconds:.2f} s",
    ]
    for pairs, title in (
        (found.smallest, "smallest of Df, largest of H"),
        (found.largest, "largest of Df, lowest of H"),
    ):
        if isinstance(pairs, str):
            lines += ["", f"{title}: {pairs}"]
            continue
        lines += ["", f"{title}: {pairs.summary()}"]
        lines.append("  #    eigenvalue of Df     ± bound     eigenvalue of H     ± bound  converged")
        h_values = _given(pairs.hessian_values)
        h_bounds = _given(pairs.hessian_bounds)
        columns = zip(pairs.values, pairs.bounds, h_values, h_bounds, pairs.converged, strict=True)
        for number, (mu, mu_bound, h, bound, converged) in enumerate(columns, start=1):
            yes = "yes" if converged else "no"
            lines.append(f"{number:>3}  {mu:>18.10f}  {mu_bound:>10.1e}  {h:>18.10f}  {bound:>10.1e}  {yes:>9}")
        lines += [f"note: {note}" for note in pairs.notes]
    return "\n".join([*lines, "", _stability(found)])


def _stability(found: Spectrum) -> str:
    h, bound = found.sharpness, found.sharpness_bound
    if h is None or bound is None:
        return "the sharpness was not found"
    value = f"sharpness {h:.8g} ± {bound:.1e}"
    if found.threshold is None:
        return f"{value}; at lr {found.settings['lr']:g} the step is the identity"
    name = "2/α − ω" if found.settings["weight_decay"] else "2/α"
    threshold = f"the threshold {name} = {found.threshold:g}"
    if h + bound < found.threshold:
        return f"{value}, below {threshold}: no eigenvalue of Df under −1 was found"
    if h - bound <= found.threshold:
        return f"{value}, at {threshold}: the bound does not tell on which side"
    return f"{value}, above {threshold}: Df has an eigenvalue under −1, along which the step overshoots and grows"


COMMAND = Command(
    "spectrum",
    "leading eigenvalues of the Jacobian of a training step, at both ends, with bounds",
    "Train a two-layer network by gradient descent, take the Jacobian Df = I − αH of the next step, and find its "
    "eigenvalues at both ends with a bound on the error of each.",
    _options,
    _run,
)
