"""`eigenpairs` by thick-restart Lanczos on spectra that are hard, against eigenvalues that are known exactly."""

import numpy as np
import pytest
import torch
from spectra import best, broken_groups, found, ranked_distances

import jvp_ops as jo
from jvp_ops.eigen._proof import Proof, sharpened
from jvp_ops.eigen._target import Target
from jvp_ops.linear import LinearMap
from jvp_ops.operators import TensorOperator
from jvp_ops.testing import SPECTRA, conjugated, laplacian, mikota, operator_of, spectrum

NAMED = {**{name: lambda name=name, **o: spectrum(name, 120, **o) for name in SPECTRA}}
NAMED |= {"mikota": lambda rng=0, **o: mikota(120, **o), "laplacian": lambda rng=0, **o: laplacian(120, **o)}
KINDS = {"float64": {}, "float32": {"dtype": "float32"}, "float32 alone": {"dtype": "float32", "float64": False}}
ENDS = ["LA", "SA", "LM", "BE"]
# Where ends of a float32 operator cannot be told apart within its rounding, ‖A‖ · a few 1e-7 is what is claimed.
CLOSE = {"float64": 1e-12, "float32": 1e-8, "float32 alone": 1e-6}


def lanczos(operator, k, which, **options):
    return jo.eigenpairs(operator, k, which, method="lanczos", **options)


def check(pairs, values, k, close, slack=1e-14):
    """Check a converged result against all eigenvalues: the k best with multiplicity, and truthful intervals."""
    size = np.abs(values).max()
    assert len(pairs) == k
    np.testing.assert_allclose(found(pairs), best(values, k, pairs.which), rtol=0, atol=close * size)
    assert not broken_groups(pairs.values, pairs.bounds, values, slack * size)
    assert pairs.stopped == "converged"
    assert pairs.converged.all()
    assert (pairs.residuals <= pairs.tol * size).all()


def vectors_of(case):
    _, vectors = np.linalg.eigh(case.operator.dense().numpy())
    return torch.from_numpy(vectors)  # ascending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", NAMED)
def test_the_best_are_found_with_their_multiplicity_on_every_spectrum(name, which, kind):
    close = 1e-5 if name == "decaying" and kind != "float64" else CLOSE[kind]  # tol is wider than its gaps
    for seed in range(2 if kind == "float64" and which in ("LA", "LM") else 1):
        case = NAMED[name](rng=seed, **KINDS[kind])
        pairs = lanczos(case.operator, 6, which, rng=seed)
        check(pairs, case.values, 6, close, slack=5e-7 if kind == "float32 alone" else 1e-14)
        if kind == "float32":
            assert pairs.float64_products > 0
            assert not pairs.notes


@pytest.mark.parametrize("which, kind", [("LA", "float64"), ("SA", "float64"), ("BE", "float32"), ("LM", "float32")])
def test_a_null_space_of_3401_dimensions_is_no_obstacle(which, kind):
    case = spectrum("null space", 3978, **KINDS[kind])
    assert (case.values == 0).sum() == 3401
    pairs = lanczos(case.operator, 8, which)
    check(pairs, case.values, 8, CLOSE[kind])
    assert pairs.products < 300


@pytest.mark.parametrize("times", [2, 3, 50])
def test_multiple_eigenvalues_need_few_products(times):
    name = {2: "double", 3: "triple", 50: "fifty-fold"}[times]
    for options in ({"dtype": "float32"}, {}):
        assert lanczos(spectrum(name, 200, **options).operator, min(times, 6), "LA").products < 250


@pytest.mark.parametrize("block", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("name", ["stepped", "triple", "fifty-fold", "zero", "low rank", "null space"])
def test_every_block_size_finds_every_copy(name, block):
    case = spectrum(name, 100)
    for which in ("LA", "LM"):
        check(lanczos(case.operator, 5, which, block=block), case.values, 5, 1e-12)


@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("name", sorted(set(NAMED) & set(SPECTRA)))
def test_spaces_smaller_than_a_block_are_solved_whole(name, n):
    for which in ENDS:
        for k in {1, 2, n - 1} - ({1} if which == "BE" else set()):
            if k < n:
                for block in (1, 17):
                    case = spectrum(name, n)
                    check_small(lanczos(case.operator, k, which, block=block), case.values, k)


def check_small(pairs, values, k):
    check(pairs, values, k, 1e-12) if values.any() else np.testing.assert_array_equal(pairs.values, np.zeros(k))


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", ["decaying", "stepped", "triple", "indefinite", "zero", "identity"])
def test_all_but_one_eigenvalue_can_be_asked_for(name, which):
    case = spectrum(name, 40)
    check_small(lanczos(case.operator, 39, which), case.values, 39)


@pytest.mark.parametrize("name", ["decaying", "fifty-fold", "null space", "low rank", "indefinite", "identity"])
@pytest.mark.parametrize("block", [1, 8])
def test_a_start_inside_an_invariant_subspace_hides_nothing(name, block):
    case = spectrum(name, 120)
    V = vectors_of(case)
    for columns in ([119], [3, 70], list(range(30, 60))):
        for which in ("LA", "SA") if block == 8 else ("LA",):
            check(lanczos(case.operator, 4, which, block=block, start=V[:, columns]), case.values, 4, 1e-12)


def test_a_start_in_the_null_space_does_not_set_the_scale():
    case = spectrum("null space", 120)
    null = vectors_of(case)[:, np.abs(np.linalg.eigvalsh(case.operator.dense().numpy())) < 1e-12]
    check(lanczos(case.operator, 4, "LM", start=null), case.values, 4, 1e-12)


@pytest.mark.parametrize("count", [1, 5, 40, 119])
def test_a_warm_start_of_any_number_of_vectors_is_used(count):
    case = spectrum("indefinite", 120)
    start = vectors_of(case)[:, -count:]
    near = start + 1e-6 * torch.from_numpy(np.random.default_rng(1).standard_normal(start.shape))
    check(lanczos(case.operator, 5, "LA", start=near), case.values, 5, 1e-12)


def test_a_good_start_saves_products_and_an_earlier_result_is_one():
    case = spectrum("indefinite", 300)
    cold = lanczos(case.operator, 5, "LA")
    warm = lanczos(case.operator, 5, "LA", start=cold, verify=False)
    assert warm.products < cold.products / 4
    check(warm, case.values, 5, 1e-12)
    vector = lanczos(case.operator, 1, "LA", start=cold.vectors[:, 0])
    check(vector, case.values, 1, 1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_deflated_eigenvectors_do_not_come_again(sparse):
    values = np.r_[np.full(3, 9.0), np.linspace(-2, 4, 97)]
    operator = operator_of(np.diag(values))
    known = torch.eye(100, dtype=torch.float64)[:, :3]
    known = known.to_sparse() if sparse else known @ torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 2]]).double()
    pairs = lanczos(operator, 5, "LA", deflate=known)
    check(pairs, values[3:], 5, 1e-12)
    assert float(pairs.vectors[:3].abs().max()) < 1e-7


def test_deflation_leaves_only_what_there_is():
    operator = operator_of(np.diag(np.arange(10.0)))
    pairs = lanczos(operator, 4, "LA", deflate=torch.eye(10, dtype=torch.float64)[:, 5:])
    np.testing.assert_allclose(pairs.values, [4, 3, 2, 1], atol=1e-12)
    with pytest.raises(jo.InputError, match="linearly dependent"):
        lanczos(operator, 2, "LA", deflate=torch.ones(10, 2, dtype=torch.float64))
    with pytest.raises(jo.InputError, match="orthonormal"):
        lanczos(operator, 2, "LA", deflate=(2 * torch.eye(10, dtype=torch.float64)[:, :2]).to_sparse())
    with pytest.raises(jo.InputError, match="k=6 is out of range: deflate leaves 5 of 10 dimensions"):
        lanczos(operator, 6, "LA", deflate=torch.eye(10, dtype=torch.float64)[:, 5:])


@pytest.mark.parametrize("budget", [8, 20, 50, 90, 130])
def test_a_budget_of_products_is_kept_and_what_it_gives_is_certified(budget):
    case = laplacian(400)
    pairs = lanczos(case.operator, 5, "LA", max_products=budget)
    assert pairs.history[-1, 0] <= budget if len(pairs.history) else True
    assert pairs.products <= budget + 3 * 5 + 2
    assert pairs.stopped == "max_products"
    assert f"max_products={budget}" in pairs.notes[0]
    assert not broken_groups(pairs.values, pairs.bounds, case.values)
    errors = np.array([np.abs(case.values - value).min() for value in pairs.values])
    assert (errors[pairs.converged] <= 1e-10 * 4).all()


def test_a_budget_below_the_first_block_is_refused():
    with pytest.raises(jo.InputError, match=r"max_products=7 is too few: the first block alone takes 8"):
        lanczos(laplacian(300).operator, 5, "LA", max_products=7)


def test_a_callback_sees_the_solve_and_can_stop_it():
    case, seen = laplacian(400), []

    def stop_at_100(status):
        seen.append(status)
        return status.products >= 100

    pairs = lanczos(case.operator, 5, "LA", callback=stop_at_100)
    assert pairs.stopped == "cancelled"
    assert seen[-1].products >= 100 > seen[-2].products
    assert not broken_groups(pairs.values, pairs.bounds, case.values)
    np.testing.assert_array_equal(pairs.history[:, 0], [status.products for status in seen])


def test_a_budget_of_time_is_kept():
    case = laplacian(400)
    pairs = lanczos(case.operator, 5, "LA", tol=0.0, max_seconds=0.02)
    assert pairs.stopped in ("max_seconds", "rounding")
    assert not broken_groups(pairs.values, pairs.bounds, case.values)
    with pytest.raises(jo.ConvergenceError, match="before its first product"):
        lanczos(case.operator, 5, "LA", max_seconds=0.0)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_ones():
    case = spectrum("triple", 150)
    first, second, other = (lanczos(case.operator, 5, "LA", rng=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)
    assert not torch.equal(first.vectors, other.vectors)


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", ["decaying", "clustered", "triple", "indefinite", "low rank", "zero", "identity"])
def test_a_proof_is_given_where_nothing_was_missed_and_sharpens_bounds_truly(name, which):
    case = spectrum(name, 100)
    plain = lanczos(case.operator, 5, which, tol=1e-6)
    proved = lanczos(case.operator, 5, which, tol=1e-6, prove_complete=True)
    assert not plain.complete
    if proved.complete:
        assert (ranked_distances(proved, case.values, which) <= proved.bounds + 1e-13).all()
        cut_alone = np.ptp(np.sort(np.abs(case.values))[-8:]) > 1e-3  # else the cut's intervals reach to its far edge
        assert not cut_alone or which != "LM" or (proved.bounds <= plain.bounds + 1e-12).all()
    assert proved.complete or "not proved complete" in proved.notes[-1]
    assert not broken_groups(proved.values, proved.bounds, case.values, 1e-14)


def test_a_solve_that_did_not_converge_is_not_proved_complete():
    case = spectrum("indefinite", 400)
    pairs = lanczos(case.operator, 4, "LA", max_products=16, prove_complete=True)
    assert not pairs.complete
    assert "0 of 4 eigenpairs converged" in pairs.notes[-1]


def test_a_miss_within_the_intervals_at_the_cut_widens_them_until_they_hold_it():
    values = np.r_[1 + 1e-5 * np.arange(12) / 12, np.linspace(0, 0.5, 388)]
    options = {"block": 1, "start": blind_start(400, [11, 10]), "verify": False, "tol": 1e-5}
    pairs = lanczos(operator_of(np.diag(values)), 5, "LA", prove_complete=True, **options)
    assert not pairs.complete or (ranked_distances(pairs, values, "LA") <= pairs.bounds).all()
    plain = lanczos(operator_of(np.diag(values)), 5, "LA", **options)
    assert (ranked_distances(plain, values, "LA") > plain.bounds).any()  # the miss is real


def test_a_proof_that_is_interrupted_leaves_the_pairs(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("jvp_ops.eigen._solve.prove", interrupted)
    pairs = lanczos(spectrum("decaying", 100).operator, 3, "LA", prove_complete=True)
    assert not pairs.complete
    assert pairs.converged.all()
    assert "interrupted" in pairs.notes[-1]


@pytest.mark.parametrize("method", ["dense", "lanczos", "scipy"])
def test_a_non_symmetric_operator_that_says_it_is_symmetric_is_refused_by_every_method(method):
    matrix = np.random.default_rng(1).standard_normal((30, 30))
    with pytest.raises(jo.InputError, match="declared symmetric, but"):
        jo.eigenpairs(operator_of(matrix, symmetric=True), 3, "LA", method=method)


def test_vectors_that_are_no_eigenvectors_are_not_deflated():
    case = spectrum("decaying", 100)
    with pytest.raises(jo.InputError, match="invariant subspace"):
        lanczos(case.operator, 3, "LA", deflate=torch.randn(100, 2, dtype=torch.float64))
    bad = torch.eye(100, dtype=torch.float64)[:, :2].clone()
    bad[0, 0] = float("nan")
    with pytest.raises(jo.NonFiniteError, match="deflate"):
        lanczos(case.operator, 3, "LA", deflate=bad.to_sparse())


def test_a_callback_may_answer_in_numpy():
    case = spectrum("decaying", 300)
    pairs = lanczos(case.operator, 3, "LA", callback=lambda status: status.residuals.max() < 1e9)
    assert pairs.stopped == "cancelled"


def test_separated_eigenvalues_are_proved_complete_with_quadratic_bounds():
    case = spectrum("decaying", 100)
    pairs = lanczos(case.operator, 4, "LA", tol=1e-5, prove_complete=True)
    assert pairs.complete
    assert (pairs.bounds < 1e-2 * pairs.residuals.clip(1e-12)).all()
    assert not broken_groups(pairs.values, pairs.bounds, case.values, 1e-15)


def blind_start(n, missed):
    """Make a start whose Krylov space with a diagonal matrix never holds some of the unit vectors, not by rounding."""
    start = torch.linspace(1, 2, n, dtype=torch.float64)  # equal entries of two copies stay equal, bit for bit
    start[missed] = 0
    return start


@pytest.mark.parametrize("which, missed", [("LA", [119]), ("LA", [117]), ("SA", [0]), ("LM", [0]), ("BE", [119, 1])])
def test_a_forced_miss_is_never_proved_complete(which, missed):
    values = np.linspace(-1.1, 1.0, 120)
    options = {"block": 1, "start": blind_start(120, missed), "verify": False, "prove_complete": True}
    pairs = lanczos(operator_of(np.diag(values)), 5, which, **options)
    assert np.abs(pairs.values[:, None] - values[missed]).min() > 1e-3
    assert pairs.converged.all()
    assert not pairs.complete
    assert "not proved complete" in pairs.notes[-1]
    assert "were found" in pairs.notes[-1]
    assert not broken_groups(pairs.values, pairs.bounds, values)
    seeing = lanczos(operator_of(np.diag(values)), 5, which, **{**options, "verify": True})
    assert seeing.complete
    np.testing.assert_allclose(found(seeing), best(values, 5, which), atol=1e-12)


@pytest.mark.parametrize("missed", [[2], [1, 2]])
def test_verification_finds_the_copies_that_the_start_does_not_hold(missed):
    values = np.r_[np.full(3, 2.0), np.arange(147) / 147]
    operator = operator_of(np.diag(values))
    blind = lanczos(operator, 3, "LA", block=1, start=blind_start(150, missed), verify=False)
    assert (blind.values > 1.9).sum() == 3 - len(missed)
    assert not broken_groups(blind.values, blind.bounds, values)
    seeing = lanczos(operator, 3, "LA", block=1, start=blind_start(150, missed))
    np.testing.assert_allclose(seeing.values, [2, 2, 2], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_an_operator_that_is_not_as_symmetric_as_it_claims_is_refused(dtype, size):
    random = np.random.default_rng(0)
    matrix = np.diag(np.linspace(0, 1, 200)) + size * np.triu(random.standard_normal((200, 200)), 1) / 10
    with pytest.raises(jo.InputError, match="declared symmetric, but"):
        lanczos(operator_of(matrix, symmetric=True, dtype=dtype), 3, "LA")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_rounding_and_scale_do_not_make_an_operator_look_unsymmetric(dtype, scale):
    for name in ("identity", "decaying", "stepped"):
        case = conjugated(SPECTRA[name](60) * scale, dtype=dtype)
        check(lanczos(case.operator, 3, "LA"), case.values, 3, 1e-8)
        check(lanczos(case.operator, 3, "LA", basis_dtype=dtype, tol=1e-5), case.values, 3, 1e-5, slack=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "dense", "block": 4}, "leave it out"),
        ({"method": "dense", "verify": True}, "leave it out"),
        ({"method": "scipy", "max_seconds": 1.0}, "leave it out"),
        ({"method": "scipy", "deflate": torch.ones(50)}, "leave it out"),
        ({"method": "scipy", "start": torch.ones(50)}, "leave it out"),
        ({"method": "krylov-schur"}, "use 'lanczos', or 'auto'"),
        ({"method": "lanczos", "condition": True}, "a symmetric one's condition numbers are all 1"),
        ({"method": "lanczos", "resume": True}, "no checkpoint was named"),
        ({"method": "lanczos", "start": torch.zeros(50)}, "nothing but zeros"),
        ({"method": "lanczos", "start": torch.ones(49)}, r"shape \(50,\) or \(50, m\)"),
        ({"method": "lanczos", "start": torch.full((50,), float("nan"))}, "start"),
        ({"method": "lanczos", "start": torch.ones(50, 0)}, r"shape \(50,\)"),
        ({"method": "lanczos", "deflate": np.eye(50)}, "must be a tensor"),
        ({"method": "lanczos", "block": 0}, "block must be an integer"),
        ({"method": "lanczos", "basis_dtype": "float16"}, "use float32 or float64"),
        ({"method": "lanczos", "callback": 3}, "callback must be a function"),
        ({"method": "lanczos", "max_memory": 100}, "raise max_memory"),
        ({"method": "lanczos", "max_seconds": -1.0}, "max_seconds"),
        ({"method": "gauss"}, "method must be one of"),
    ],
)
def test_contradictory_options_are_refused_with_what_to_do(options, message):
    with pytest.raises((jo.InputError, jo.MemoryBudgetError, jo.NonFiniteError), match=message):
        jo.eigenpairs(spectrum("decaying", 50).operator, 3, "LA", **options)


@pytest.mark.parametrize("at", [1, 2, 5, 9, 15])
def test_nan_at_any_moment_is_named_and_leaves_what_was_found(at):
    case, calls = laplacian(300), 0
    layout = case.operator.columns

    def product(V):
        nonlocal calls
        calls += 1
        return case.operator.apply(V) * (float("nan") if calls >= at else 1.0)

    known = LinearMap.symmetric_of(product, layout, torch.float64, torch.device("cpu"), identity=dict)
    with pytest.raises(jo.NonFiniteError, match="product") as caught:
        lanczos(TensorOperator(known), 3, "LA")
    partial = getattr(caught.value, "partial", None)
    if at > 5:
        assert len(partial) == 3
    if partial is not None:
        assert partial.stopped == "failed"
        assert not broken_groups(partial.values, partial.bounds, case.values, 1e-12)


@pytest.mark.parametrize("e", [1e-1, 1e-3, 1e-6])
def test_a_sharpened_bound_is_hardly_more_than_the_error(e):
    exact = np.linalg.eigvalsh([[0.0, e], [e, 1.0]])
    proof = Proof(low=exact[1], complete=True)
    (bound,) = sharpened(np.zeros(1), np.array([e]), np.array([[e * e]]), np.zeros(1), proof)
    assert -exact[0] <= bound <= -1.2 * exact[0]
    (unproved,) = sharpened(np.zeros(1), np.array([e]), np.array([[e * e]]), np.zeros(1), Proof())
    assert unproved == e


def test_a_new_copy_of_a_value_counts_as_moved_and_a_tie_does_not():
    assert Target("LA").moved(np.array([2.0, 1.0, 0.5]), np.array([2.0, 2.0, 1.0])) == 1
    assert Target("LM").moved(np.array([5.0, 3.0]), np.array([5.0, -3.0])) == 0
    assert Target("LM", 1.0, -0.1).moved(np.array([30.0]), np.array([31.0])) == pytest.approx(1)
    assert Target("BE").moved(np.array([-1.0, 1.0]), np.array([-1.0, 3.0])) == 2
    assert Target("LM").moved(np.array([1j, -1j, 0.5]), np.array([1j, -1j, 1.0])) == pytest.approx(0.5)
