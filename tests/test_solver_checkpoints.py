"""Checkpoints of the eigensolver: a solve cut anywhere goes on to the very bits of the uncut one, or is refused."""

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops.testing import grcar, heavy_ball, laplacian, operator_of, spectrum

CASES = {
    "lanczos": (lambda: laplacian(200).operator, 4, "LA", {}),
    "multiple": (lambda: spectrum("fifty-fold", 200).operator, 6, "BE", {"block": 3}),
    "float64 phase": (lambda: laplacian(200, dtype="float32").operator, 4, "LA", {"tol": 1e-11}),
    "float32 basis": (lambda: laplacian(200, dtype="float32").operator, 4, "LA", {"basis_dtype": "float32"}),
    "start": (lambda: laplacian(200).operator, 4, "LA", {"start": torch.ones(200, 30).tril()}),
    "krylov-schur": (lambda: grcar(120).operator, 4, "LI", {"tol": 1e-6, "block": 3}),
    "pairs": (lambda: heavy_ball(np.linspace(0, 3, 100), lr=1, momentum=0.8).operator, 5, "LR", {"block": 2}),
}


def solve(case, **options):
    make, k, which, own = CASES[case]
    operator = make()
    method = "lanczos" if operator.symmetric else "krylov-schur"
    return jo.eigenpairs(operator, k, which, method=method, **own, **options)


def same(first, second):
    """Compare two results bit for bit, but for the time and the products since the resume."""
    assert np.array_equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)
    assert np.array_equal(first.bounds, second.bounds, equal_nan=True)
    assert np.array_equal(first.residuals, second.residuals)
    assert np.array_equal(first.history, second.history)
    assert (first.stopped, first.notes) == (second.stopped, second.notes)


@pytest.mark.parametrize("case", CASES)
def test_a_solve_cut_at_any_look_goes_on_to_the_bits_of_the_uncut_one(case, tmp_path):
    phases = []
    whole = solve(case, callback=lambda status: phases.append(status.phase))
    assert "verifying" in phases
    assert ("float64" in phases) == (case == "float64 phase")
    moments = {1, len(phases) // 3, phases.index("verifying"), phases.index("verifying") - 1, len(phases) - 1}
    if "float64" in phases:
        moments.add(phases.index("float64"))
    for moment in sorted(moments):
        path, looks = tmp_path / f"{moment}.npz", []
        cut = solve(
            case, checkpoint=path, callback=lambda status, m=moment, looks=looks: looks.append(0) or len(looks) > m
        )
        assert path.exists()
        assert cut.stopped in ("cancelled", whole.stopped)
        same(solve(case, checkpoint=path, resume=True), whole)


@pytest.mark.parametrize("case", ["lanczos", "float64 phase", "krylov-schur"])
def test_a_solve_cut_by_a_budget_again_and_again_goes_on(case, tmp_path):
    whole, path, budget = solve(case), tmp_path / "state.npz", 40
    for _ in range(60):
        part = solve(case, checkpoint=path, resume=True, max_products=budget)
        if part.stopped != "max_products":
            break
        budget += 30
    same(part, whole)


@pytest.mark.parametrize("case", ["lanczos", "float64 phase", "krylov-schur"])
def test_a_finished_solve_is_resumed_at_once(case, tmp_path):
    path = tmp_path / "state.npz"
    whole = solve(case, checkpoint=path)
    again = solve(case, checkpoint=path, resume=True)
    assert np.array_equal(whole.values, again.values)
    assert again.stopped == whole.stopped
    assert again.products + again.float64_products <= 4 * len(whole) + 8


def test_a_checkpoint_of_another_operator_or_request_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    jo.eigenpairs(laplacian(200).operator, 4, "LA", checkpoint=path, max_products=60)
    other = [
        (spectrum("decaying", 200).operator, 4, "LA", {}),
        (laplacian(200, dtype="float32").operator, 4, "LA", {}),
        (laplacian(200).operator, 5, "LA", {}),
        (laplacian(200).operator, 4, "SA", {}),
        (laplacian(200).operator, 4, "LA", {"tol": 1e-6}),
        (laplacian(200).operator, 4, "LA", {"rng": 1}),
        (laplacian(200).operator, 4, "LA", {"block": 4}),
        (laplacian(200).operator, 4, "LA", {"verify": False}),
        (laplacian(200).operator, 4, "LA", {"start": torch.ones(200)}),
        (
            laplacian(200).operator,
            4,
            "LA",
            {"deflate": jo.eigenpairs(laplacian(200).operator, 1, "SA", method="dense")},
        ),
    ]
    for operator, k, which, options in other:
        with pytest.raises(jo.DataError, match="of another run"):
            jo.eigenpairs(operator, k, which, checkpoint=path, resume=True, **options)
    with pytest.raises(jo.InputError, match="resume it, or remove it"):
        jo.eigenpairs(laplacian(200).operator, 4, "LA", checkpoint=path)


def test_an_operator_that_changed_under_its_fingerprint_is_refused(tmp_path):
    path, scale = tmp_path / "state.npz", 1.0
    loss = jo.FunctionLoss(lambda x: scale * (torch.arange(300.0).to(x) * x**2).sum() / 2, size=300, dtype="float64")
    H = loss.hessian(loss.initial())
    jo.eigenpairs(H, 3, "LA", checkpoint=path, max_products=60)
    H = loss.hessian(loss.initial())
    known = H.linear
    broken = type(H)(type(known)(**{**vars(known), "apply": lambda V: 1.001 * known.apply(V)}))
    with pytest.raises(jo.DataError, match="of another operator"):
        jo.eigenpairs(broken, 3, "LA", checkpoint=path, resume=True)


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    operator = operator_of(np.diag(np.arange(300.0)))
    jo.eigenpairs(operator, 4, "LA", checkpoint=path, max_products=60)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[: len(content) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(jo.DataError, match="damaged"):
            jo.eigenpairs(operator, 4, "LA", checkpoint=path, resume=True)


def test_resume_without_a_file_begins_and_a_bad_place_is_refused_first(tmp_path):
    operator = laplacian(200).operator
    fresh = jo.eigenpairs(operator, 3, "LA", checkpoint=tmp_path / "new.npz", resume=True)
    assert fresh.converged.all()
    before = operator.products
    with pytest.raises(jo.InputError, match="not a writable folder"):
        jo.eigenpairs(operator, 3, "LA", checkpoint=tmp_path / "none" / "x.npz")
    assert operator.products == before
