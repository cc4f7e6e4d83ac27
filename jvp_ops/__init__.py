"""jvp_ops: the Jacobian of a training step as a scipy LinearOperator.

A training step is a map f: θ → θ'. jvp_ops multiplies by its Jacobian Df(θ) and by its transpose, on the
device, without building the matrix, and finds leading eigenvalues with bounds on top of that.

``import jvp_ops as jo`` is lazy: torch is imported when the first name that needs it is used.

Examples
--------
>>> import jvp_ops as jo
>>> data = jo.load_digits()
>>> loss = jo.TwoLayerLoss(data, hidden=10)
>>> f = jo.GradientDescent(loss, lr=0.1)
>>> theta = f.run(loss.initial(rng=0), steps=20)
>>> f.jacobian(theta)
<760x760 JacobianOperator with dtype=float32>
"""

import importlib
from typing import TYPE_CHECKING, Any

from jvp_ops._version import __version__ as __version__
from jvp_ops.errors import (
    ConvergenceError as ConvergenceError,
)
from jvp_ops.errors import (
    DataError as DataError,
)
from jvp_ops.errors import (
    InputError as InputError,
)
from jvp_ops.errors import (
    JvpOpsError as JvpOpsError,
)
from jvp_ops.errors import (
    JvpOpsWarning as JvpOpsWarning,
)
from jvp_ops.errors import (
    MemoryBudgetError as MemoryBudgetError,
)
from jvp_ops.errors import (
    MissingExtraError as MissingExtraError,
)
from jvp_ops.errors import (
    NonFiniteError as NonFiniteError,
)

if TYPE_CHECKING:
    from jvp_ops._load import load as load
    from jvp_ops._sitting import Stop as Stop
    from jvp_ops.data import Dataset as Dataset
    from jvp_ops.data import load_digits as load_digits
    from jvp_ops.data import load_fashion_mnist as load_fashion_mnist
    from jvp_ops.data import load_mnist as load_mnist
    from jvp_ops.dynamics import CovariantVectors as CovariantVectors
    from jvp_ops.dynamics import FiniteTimeExponents as FiniteTimeExponents
    from jvp_ops.dynamics import LyapunovSpectrum as LyapunovSpectrum
    from jvp_ops.dynamics import Orbit as Orbit
    from jvp_ops.dynamics import TangentSystem as TangentSystem
    from jvp_ops.dynamics import Tracking as Tracking
    from jvp_ops.dynamics import covariant_vectors as covariant_vectors
    from jvp_ops.dynamics import finite_time_exponents as finite_time_exponents
    from jvp_ops.dynamics import leading_frame as leading_frame
    from jvp_ops.dynamics import local_growth as local_growth
    from jvp_ops.dynamics import lyapunov_spectrum as lyapunov_spectrum
    from jvp_ops.dynamics import track_eigenpairs as track_eigenpairs
    from jvp_ops.eigen import Cluster as Cluster
    from jvp_ops.eigen import Eigenpairs as Eigenpairs
    from jvp_ops.eigen import Inertia as Inertia
    from jvp_ops.eigen import SingularTriplets as SingularTriplets
    from jvp_ops.eigen import SolveStatus as SolveStatus
    from jvp_ops.eigen import eigenpairs as eigenpairs
    from jvp_ops.eigen import inertia as inertia
    from jvp_ops.eigen import svd as svd
    from jvp_ops.losses import FunctionLoss as FunctionLoss
    from jvp_ops.losses import ModelLoss as ModelLoss
    from jvp_ops.losses import TwoLayerLoss as TwoLayerLoss
    from jvp_ops.maps import Adam as Adam
    from jvp_ops.maps import AdamW as AdamW
    from jvp_ops.maps import FunctionMap as FunctionMap
    from jvp_ops.maps import GradientDescent as GradientDescent
    from jvp_ops.maps import HeavyBall as HeavyBall
    from jvp_ops.maps import MinibatchSGD as MinibatchSGD
    from jvp_ops.maps import Nesterov as Nesterov
    from jvp_ops.maps import RMSProp as RMSProp
    from jvp_ops.operators import GaussNewtonOperator as GaussNewtonOperator
    from jvp_ops.operators import HessianOperator as HessianOperator
    from jvp_ops.operators import JacobianOperator as JacobianOperator
    from jvp_ops.operators import TensorOperator as TensorOperator
    from jvp_ops.operators import as_operator as as_operator
    from jvp_ops.operators import dense as dense
    from jvp_ops.operators import diagonal_operator as diagonal_operator
    from jvp_ops.operators import identity as identity
    from jvp_ops.operators import product_error as product_error
    from jvp_ops.operators import symmetry_error as symmetry_error
    from jvp_ops.parameters import Parameter as Parameter
    from jvp_ops.parameters import Parameters as Parameters

_HOME = {
    "load": "jvp_ops._load",
    "Dataset": "jvp_ops.data",
    "load_digits": "jvp_ops.data",
    "load_fashion_mnist": "jvp_ops.data",
    "load_mnist": "jvp_ops.data",
    "Cluster": "jvp_ops.eigen",
    "CovariantVectors": "jvp_ops.dynamics",
    "FiniteTimeExponents": "jvp_ops.dynamics",
    "LyapunovSpectrum": "jvp_ops.dynamics",
    "Orbit": "jvp_ops.dynamics",
    "TangentSystem": "jvp_ops.dynamics",
    "Tracking": "jvp_ops.dynamics",
    "covariant_vectors": "jvp_ops.dynamics",
    "finite_time_exponents": "jvp_ops.dynamics",
    "leading_frame": "jvp_ops.dynamics",
    "local_growth": "jvp_ops.dynamics",
    "lyapunov_spectrum": "jvp_ops.dynamics",
    "track_eigenpairs": "jvp_ops.dynamics",
    "Eigenpairs": "jvp_ops.eigen",
    "SolveStatus": "jvp_ops.eigen",
    "Stop": "jvp_ops._sitting",
    "Inertia": "jvp_ops.eigen",
    "SingularTriplets": "jvp_ops.eigen",
    "eigenpairs": "jvp_ops.eigen",
    "svd": "jvp_ops.eigen",
    "inertia": "jvp_ops.eigen",
    "FunctionLoss": "jvp_ops.losses",
    "ModelLoss": "jvp_ops.losses",
    "TwoLayerLoss": "jvp_ops.losses",
    "Adam": "jvp_ops.maps",
    "AdamW": "jvp_ops.maps",
    "FunctionMap": "jvp_ops.maps",
    "GradientDescent": "jvp_ops.maps",
    "HeavyBall": "jvp_ops.maps",
    "MinibatchSGD": "jvp_ops.maps",
    "Nesterov": "jvp_ops.maps",
    "RMSProp": "jvp_ops.maps",
    "GaussNewtonOperator": "jvp_ops.operators",
    "HessianOperator": "jvp_ops.operators",
    "JacobianOperator": "jvp_ops.operators",
    "TensorOperator": "jvp_ops.operators",
    "as_operator": "jvp_ops.operators",
    "dense": "jvp_ops.operators",
    "diagonal_operator": "jvp_ops.operators",
    "identity": "jvp_ops.operators",
    "product_error": "jvp_ops.operators",
    "symmetry_error": "jvp_ops.operators",
    "Parameter": "jvp_ops.parameters",
    "Parameters": "jvp_ops.parameters",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'jvp_ops' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names beside those already here."""
    return sorted({*globals(), *_HOME})
