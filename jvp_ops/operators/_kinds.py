"""The operators that users meet, told apart by what they are the derivative of."""

from typing import ClassVar

from jvp_ops.operators._tensor_operator import TensorOperator


class HessianOperator(TensorOperator):
    """The Hessian H = ∇²L(θ) of a loss, symmetric; ``loss.hessian(theta)`` makes it.

    All else is as in `TensorOperator`.
    """


class GaussNewtonOperator(TensorOperator):
    """The generalized Gauss-Newton matrix G = ⟨Jᵀ (∂²ℓ/∂z²) J⟩; ``loss.gauss_newton(theta)`` makes it.

    J is the Jacobian of the model's outputs z with respect to θ and ⟨·⟩ the loss's own mean or sum over samples;
    symmetric, and positive semidefinite since the loss ℓ is convex in z. All else is as in `TensorOperator`.

    References
    ----------
    N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural
    Computation 14 (2002).
    """


class JacobianOperator(TensorOperator):
    """The Jacobian Df(θ) of a map f: θ → θ'; ``map.jacobian(theta)`` makes it.

    For gradient descent Df = (1 − αω) I − α H, symmetric, and each product is one Hessian-vector product formed
    in the operator's dtype; `affine` then tells H. For other optimizers, whose state is more than θ (its parts are
    the groups ``theta``, ``v``, …), and for a general map, ``apply`` is the jvp and ``apply_adjoint`` the vjp, which
    differ. All else is as in `TensorOperator`.
    """

    _base_kind: ClassVar[type[TensorOperator]] = HessianOperator
