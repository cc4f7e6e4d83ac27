"""No interval ever misses, whatever the spectrum: a property of every symmetric result, converged or not."""

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from spectra import broken_groups, ranked_distances

import jvp_ops as jo
from jvp_ops.testing import conjugated, operator_of

DTYPES = st.sampled_from(["float64", "float32", "float32 alone"])
GAPS = [0.0, 1e-15, 1e-13, 1e-10, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2]


@st.composite
def spectra(draw):
    """Draw eigenvalues of any scale: some apart, some in clusters as tight as rounding, some multiple."""
    count = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = []
    for _ in range(count):
        center = random.choice([random.uniform(-1, 1), 10.0 ** random.uniform(-8, 0), 0.0, 1.0, -1.0])
        times = int(random.choice([1, 1, 1, 2, 3, 8]))
        values += list(center * (1 + random.choice(GAPS) * np.arange(times)))
    scale = 10.0 ** draw(st.integers(-12, 12))
    return np.array(values + [0.0] * max(0, 2 - len(values))) * scale


def operator_and_values(values, dtype, kind, seed):
    """Make an operator of these eigenvalues, with those that it has in float64 and how well they are known."""
    name = dtype.split()[0]
    options = {"dtype": name, "float64": dtype != "float32 alone"}
    if kind == "diagonal":
        exact = values.astype(np.float32).astype(float) if dtype == "float32 alone" else values
        return operator_of(np.diag(values), **options), exact, 0.0
    size = np.abs(values).max(initial=0.0)
    if kind == "reflected" and dtype != "float32 alone":
        return conjugated(values, rng=seed, **options).operator, values, 20 * np.finfo(float).eps * size
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    matrix = (q * values) @ q.T
    matrix = (matrix + matrix.T) / 2
    stored = matrix.astype(np.float32).astype(float) if dtype == "float32 alone" else matrix
    return operator_of(matrix, **options), np.linalg.eigvalsh(stored), len(values) * np.finfo(float).eps * size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=spectra(),
    dtype=DTYPES,
    kind=st.sampled_from(["diagonal", "reflected", "dense"]),
    which=st.sampled_from(["LA", "SA", "LM", "BE"]),
    k=st.integers(1, 12),
    block=st.sampled_from([None, 1, 2, 3, 8]),
    tol=st.sampled_from([None, 0.0, 1e-14, 1e-3, 0.1]),
    max_products=st.sampled_from([None, None, 20, 50]),
    verify=st.booleans(),
    prove=st.booleans(),
    basis=st.sampled_from([None, None, "float32"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_interval_ever_misses(values, dtype, kind, which, k, block, tol, max_products, verify, prove, basis, seed):
    k = min(k, len(values) - 1)
    assume(which != "BE" or k > 1)
    operator, exact, slack = operator_and_values(values, dtype, kind, seed)
    options = {"block": block, "tol": tol, "max_products": max_products, "verify": verify, "basis_dtype": basis}
    pairs = jo.eigenpairs(operator, k, which, method="lanczos", prove_complete=prove, rng=seed, **options)
    assert not broken_groups(pairs.values, pairs.bounds, exact, slack)
    assert np.isfinite(pairs.bounds).all()
    lengths = torch.linalg.vector_norm(pairs.vectors.double(), dim=0).numpy()
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    if pairs.stopped == "converged":
        assert pairs.converged.all()
    if pairs.complete:
        assert len(pairs) == k
        assert (ranked_distances(pairs, exact, which) <= pairs.bounds + slack).all()
