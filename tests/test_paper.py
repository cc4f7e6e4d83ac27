"""The formulas of docs/paper.md, and what sets each of them apart from the one that the paper prints.

Every block is found three times: by hand from the document's formulas, by automatic differentiation of the update,
and from the package. A printed formula is tried by making its one slip in the right one.
"""

import ast
import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import TwoLayer, numbers
from torch import Tensor
from torch.func import jacrev

import jvp_ops as jo

DOCUMENT = Path(__file__).parents[1] / "docs" / "paper.md"
ALPHA = 0.1
AGREE, DIFFER = 1e-12, 0.03  # both relative to the largest entry of αH in the block
NAMES = ("W1", "b1", "W2", "b2")
BLOCKS = list(product(NAMES, NAMES))
PROBLEM = TwoLayer(11, 5, 3, 4, seed=300)
SPARSE = TwoLayer(60, 6, 3, 4, dead=(1, 4), sparsity=0.6, seed=310)

# --- by hand -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The document's quantities, the first dimension running over the samples."""

    x: Tensor
    a: Tensor
    z: Tensor
    p: Tensor
    t: Tensor
    delta: Tensor
    s: Tensor
    s2: Tensor
    S: Tensor
    W2: Tensor

    @property
    def C(self):
        return torch.einsum("nj,jw,nwl->njl", self.s, self.W2, self.S)

    @property
    def M(self):
        bend = torch.einsum("nj,jl,nl->nj", self.s2, self.W2, self.delta)
        return torch.einsum("njl,vl,nv->njv", self.C, self.W2, self.s) + torch.diag_embed(bend)


def samples(problem, theta=None, sign=-1):
    W1, b1, W2, b2 = problem.split(problem.theta() if theta is None else theta)
    x, labels = problem.data()
    a = x @ W1 + b1
    z = 1 / (1 + torch.exp(sign * a))
    e = torch.exp(z @ W2 + b2)
    p = e / e.sum(1, keepdim=True)
    t = (labels[:, None] == torch.arange(problem.classes)).double()
    s = z * (1 - z)
    return Samples(x, a, z, p, t, p - t, s, s * (1 - 2 * z), torch.diag_embed(p) - torch.einsum("nl,nw->nlw", p, p), W2)


def mean(indices, *factors):
    return torch.einsum(indices, *factors) / len(factors[0])


def unit(q):
    return torch.eye(q.W2.shape[0]).double()


# i, j, l: input, hidden unit and class of the row; u, v, w: of the column; n: the sample.
CURVATURE = {
    ("W1", "W1"): lambda q: mean("ni,nu,njv->ijuv", q.x, q.x, q.M),
    ("W1", "b1"): lambda q: mean("ni,njv->ijv", q.x, q.M),
    ("W1", "W2"): lambda q: (
        mean("ni,njw,nv->ijvw", q.x, q.C, q.z) + mean("ni,nj,nw,jv->ijvw", q.x, q.s, q.delta, unit(q))
    ),
    ("W1", "b2"): lambda q: mean("ni,njw->ijw", q.x, q.C),
    ("b1", "W1"): lambda q: mean("nu,njv->juv", q.x, q.M),
    ("b1", "b1"): lambda q: mean("njv->jv", q.M),
    ("b1", "W2"): lambda q: mean("njw,nv->jvw", q.C, q.z) + mean("nj,nw,jv->jvw", q.s, q.delta, unit(q)),
    ("b1", "b2"): lambda q: mean("njw->jw", q.C),
    ("W2", "W1"): lambda q: (
        mean("nu,nvl,nj->jluv", q.x, q.C, q.z) + mean("nu,nv,nl,jv->jluv", q.x, q.s, q.delta, unit(q))
    ),
    ("W2", "b1"): lambda q: mean("nvl,nj->jlv", q.C, q.z) + mean("nv,nl,jv->jlv", q.s, q.delta, unit(q)),
    ("W2", "W2"): lambda q: mean("nj,nv,nlw->jlvw", q.z, q.z, q.S),
    ("W2", "b2"): lambda q: mean("nj,nlw->jlw", q.z, q.S),
    ("b2", "W1"): lambda q: mean("nu,nvl->luv", q.x, q.C),
    ("b2", "b1"): lambda q: mean("nvl->lv", q.C),
    ("b2", "W2"): lambda q: mean("nv,nlw->lvw", q.z, q.S),
    ("b2", "b2"): lambda q: mean("nlw->lw", q.S),
}


def curvature_by_hand(rows, columns, q, problem=PROBLEM):
    """Lay a formula out as a block of H: each parameter row-major."""
    sizes = sizes_of(problem)
    return CURVATURE[rows, columns](q).reshape(sizes[rows], sizes[columns])


def by_hand(rows, columns, q, problem=PROBLEM):
    return identity(rows, columns, problem) - ALPHA * curvature_by_hand(rows, columns, q, problem)


def identity(rows, columns, problem=PROBLEM):
    sizes = sizes_of(problem)
    shape = (sizes[rows], sizes[columns])
    return torch.eye(*shape).double() if rows == columns else torch.zeros(shape).double()


# --- by automatic differentiation and from the package -----------------------------------------------------------


def sizes_of(problem):
    d, h, c = problem.inputs, problem.hidden, problem.classes
    return {"W1": d * h, "b1": h, "W2": h * c, "b2": c}


def block_of(matrix, rows, columns, problem=PROBLEM):
    pieces = dict(zip(NAMES, torch.arange(len(matrix)).split(list(sizes_of(problem).values())), strict=True))
    return matrix[pieces[rows]][:, pieces[columns]]


def jacobian_of_the_update(value, theta):
    return jacrev(lambda theta: theta - ALPHA * jacrev(value)(theta))(theta)


@cache
def autodiff(problem=PROBLEM):
    return jacobian_of_the_update(problem.value, problem.theta())


def by_autodiff(rows, columns, problem=PROBLEM):
    return block_of(autodiff(problem), rows, columns, problem)


def from_the_package(rows, columns, problem=PROBLEM):
    return jo.GradientDescent(problem.loss(), ALPHA).jacobian(problem.theta()).block(rows, columns).dense()


# --- comparisons -------------------------------------------------------------------------------------------------


def gap(found, true, origin=0.0):
    """The largest difference, relative to the largest entry of true − origin."""
    assert found.shape == true.shape
    return float((found - true).abs().max() / (true - origin).abs().max())


def check_block(rows, columns, q=None):
    """Find a block in three ways, insist that they agree, and return it."""
    true, origin = by_autodiff(rows, columns), identity(rows, columns)
    assert gap(by_hand(rows, columns, samples(PROBLEM) if q is None else q), true, origin) <= AGREE
    assert gap(from_the_package(rows, columns), true, origin) <= AGREE
    return true


def differs(printed, true, origin=0.0):
    return printed.shape != true.shape or gap(printed, true, origin) >= DIFFER


# --- what the document states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, columns", BLOCKS)
def test_each_of_the_sixteen_blocks_is_the_stated_formula(rows, columns):
    assert check_block(rows, columns).shape == (sizes_of(PROBLEM)[rows], sizes_of(PROBLEM)[columns])


@pytest.mark.parametrize("rows, columns", BLOCKS)
def test_the_gauss_newton_part_is_the_same_formula_without_the_residual(rows, columns):
    q = samples(PROBLEM)
    found = curvature_by_hand(rows, columns, replace(q, delta=torch.zeros_like(q.delta)))
    true = block_of(PROBLEM.G(), rows, columns)
    assert gap(found, true) <= AGREE
    assert gap(PROBLEM.loss().gauss_newton(PROBLEM.theta()).block(rows, columns).dense(), true) <= AGREE
    has_residual = not {"b2"} & {rows, columns} and (rows, columns) != ("W2", "W2")
    assert (gap(curvature_by_hand(rows, columns, q), true) >= DIFFER) == has_residual


def test_the_stated_product_is_the_hessian_times_a_direction():
    q, v = samples(PROBLEM), numbers(301, len(PROBLEM.theta()))
    V1, c1, V2, c2 = PROBLEM.split(v)
    X, Z, P, k = q.x, q.z, q.p, len(q.x)
    C2 = q.s2 * (q.delta @ q.W2.T)
    RA = X @ V1 + c1
    RZ = q.s * RA
    RB = RZ @ q.W2 + Z @ V2 + c2
    RD = P * RB - P * (P * RB).sum(1, keepdim=True)
    Q = C2 * RA + q.s * (RD @ q.W2.T + q.delta @ V2.T)
    pieces = (X.T @ Q, Q.sum(0), Z.T @ RD + RZ.T @ q.delta, RD.sum(0))
    found = torch.cat([piece.reshape(-1) for piece in pieces]) / k
    assert gap(found, PROBLEM.H() @ v) <= AGREE
    assert gap(PROBLEM.loss().hessian(PROBLEM.theta()).apply(v), PROBLEM.H() @ v) <= AGREE


def test_the_stated_directions_are_all_of_the_null_space():
    p = SPARSE
    directions = []
    for i, j in product(p.dead, range(p.hidden)):
        directions.append([torch.zeros(size).double() for size in sizes_of(p).values()])
        directions[-1][0][i * p.hidden + j] = 1
    for j in range(p.hidden):
        directions.append([torch.zeros(size).double() for size in sizes_of(p).values()])
        directions[-1][2][j * p.classes : (j + 1) * p.classes] = 1
    directions.append([torch.zeros(size).double() for size in sizes_of(p).values()])
    directions[-1][3][:] = 1
    N = torch.stack([torch.cat(pieces) for pieces in directions], 1)
    assert N.shape[1] == torch.linalg.matrix_rank(N) == len(p.dead) * p.hidden + p.hidden + 1
    Df = jo.GradientDescent(p.loss(), ALPHA).jacobian(p.theta())
    assert (autodiff(p) @ N - N).abs().max() <= 1e-14
    assert (Df.apply(N) - N).abs().max() <= 1e-14
    h = torch.linalg.eigvalsh(p.H()).abs()
    assert int((h <= 1e-13 * h.max()).sum()) == N.shape[1]
    assert int((h <= 1e-6 * h.max()).sum()) == N.shape[1]


def test_the_stated_panels_are_the_block_of_the_first_weights():
    p, q = SPARSE, samples(SPARSE)
    j, other = torch.triu_indices(p.hidden, p.hidden)
    pairs = q.M[:, j, other]
    assert pairs.shape == (p.samples, p.hidden * (p.hidden + 1) // 2)
    found = torch.zeros(p.inputs, p.hidden, p.inputs, p.hidden).double()
    for i in range(p.inputs):
        r = q.x[:, i].nonzero()[:, 0]
        assert (len(r) == 0) == (i in p.dead)
        panel = pairs[r].T @ (q.x[r, i, None] * q.x[r, i:]) / p.samples
        for rows, columns in ((j, other), (other, j)):
            found[i, rows, i:, columns] = panel
            found[i:, columns, i, rows] = panel.T
    found = found.reshape(p.inputs * p.hidden, -1)
    true = block_of(p.H(), "W1", "W1", p)
    assert gap(found, true) <= AGREE
    assert gap(p.loss().hessian(p.theta()).block("W1", "W1").dense(), true) <= AGREE


# --- where the printed formulas differ ---------------------------------------------------------------------------


def test_the_sigmoid_with_a_positive_exponent_is_another_model_whose_slope_has_the_other_sign():
    theta, (x, labels) = PROBLEM.theta(), PROBLEM.data()
    flip = torch.cat([torch.full((18,), -1.0), torch.ones(16)]).double()

    def printed_value(theta):
        W1, b1, W2, b2 = PROBLEM.split(theta)
        return torch.nn.functional.cross_entropy(1 / (1 + torch.exp(x @ W1 + b1)) @ W2 + b2, labels)

    printed = jacobian_of_the_update(printed_value, theta)
    there = jo.GradientDescent(PROBLEM.loss(), ALPHA).jacobian(flip * theta).dense()
    there_by_hand = samples(PROBLEM, flip * theta)
    with_the_usual_slope = samples(PROBLEM, sign=1)
    torch.testing.assert_close(with_the_usual_slope.z, there_by_hand.z, rtol=1e-15, atol=0)
    for rows, columns in BLOCKS:
        origin, true = identity(rows, columns), block_of(printed, rows, columns)
        assert differs(true, check_block(rows, columns), origin)
        sign = -1 if (rows in NAMES[:2]) != (columns in NAMES[:2]) else 1
        assert gap(origin + sign * (by_hand(rows, columns, there_by_hand) - origin), true, origin) <= AGREE
        assert gap(block_of(flip[:, None] * there * flip, rows, columns), true, origin) <= AGREE
        assert differs(by_hand(rows, columns, with_the_usual_slope), true, origin) == (sign == -1)


def test_the_entropy_of_the_prediction_ignores_the_targets_and_has_other_blocks():
    q, theta = samples(PROBLEM), PROBLEM.theta()
    right = -(q.t * torch.log(q.p)).sum() / len(q.x)
    assert gap(right, PROBLEM.value(theta)) <= AGREE
    assert gap(PROBLEM.loss().value(theta), PROBLEM.value(theta)) <= AGREE
    slope = jacrev(PROBLEM.value)(theta)[-4:]
    assert gap(q.delta.mean(0), slope) <= AGREE
    assert gap(PROBLEM.loss().gradient(theta)[-4:], slope) <= AGREE

    def printed_value(theta):
        p = torch.softmax(PROBLEM.logits(theta), 1)
        return (p * torch.log(p)).sum() / len(p)

    entropy = jacrev(printed_value)(theta)[-4:]
    assert gap((q.p * (torch.log(q.p) - (q.p * torch.log(q.p)).sum(1, keepdim=True))).mean(0), entropy) <= AGREE
    relabelled = jo.TwoLayerLoss(q.x, (PROBLEM.data()[1] + 1) % 4, hidden=3, classes=4, dtype="float64")
    assert differs(relabelled.gradient(theta)[-4:], slope)  # the right loss does not ignore the targets
    for sign in (1, -1):
        assert differs(sign * printed_value(theta), right)
        assert differs(sign * entropy, slope)
        printed = jacobian_of_the_update(lambda theta, sign=sign: sign * printed_value(theta), theta)
        for rows, columns in BLOCKS:
            assert differs(block_of(printed, rows, columns), check_block(rows, columns), identity(rows, columns))


def test_the_slope_of_softmax_is_a_matrix_for_each_sample():
    q = samples(PROBLEM)
    logits = PROBLEM.logits(PROBLEM.theta())
    slopes = torch.stack([jacrev(lambda b: torch.softmax(b, 0))(row) for row in logits])
    assert gap(q.S, slopes) <= AGREE
    assert q.S.shape == (11, 4, 4)
    entrywise = q.p * (1 - q.p)
    assert entrywise.shape == (11, 4)
    assert gap(entrywise, slopes.diagonal(dim1=1, dim2=2)) <= AGREE  # all that an array of that shape can hold
    printed = replace(q, S=torch.diag_embed(entrywise))
    for rows, columns in BLOCKS:
        assert differs(by_hand(rows, columns, printed), check_block(rows, columns), identity(rows, columns))


@pytest.mark.parametrize("rows, columns", BLOCKS)
def test_without_the_mean_a_block_is_k_times_as_far_from_the_identity(rows, columns):
    q, true, origin = samples(PROBLEM), check_block(rows, columns), identity(rows, columns)
    printed = origin - ALPHA * len(q.x) * curvature_by_hand(rows, columns, q)
    assert gap(printed - origin, len(q.x) * (true - origin)) <= AGREE
    assert gap(printed, true, origin) >= len(q.x) - 1 - AGREE


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_the_diagonal_blocks_of_the_biases_hold_the_identity(name):
    true = check_block(name, name)
    printed = -ALPHA * curvature_by_hand(name, name, samples(PROBLEM))
    torch.testing.assert_close(true - printed, torch.eye(len(true)).double(), rtol=0, atol=1e-15)
    assert differs(printed, true)


def test_the_first_weights_by_the_output_biases_need_the_inputs():
    q, true = samples(PROBLEM), check_block("W1", "b2")
    printed = -ALPHA * mean("njw->jw", q.C)
    assert printed.shape == (3, 4)
    assert true.shape == (15, 4)
    assert gap(printed, by_autodiff("b1", "b2")) <= AGREE  # it is the block of another row
    assert differs(printed.repeat(5, 1), true)  # and taking it for every input does not mend it


@pytest.mark.parametrize("columns", NAMES)
def test_the_rows_of_the_second_weights_hold_the_activations_not_their_arguments(columns):
    q, true, origin = samples(PROBLEM), check_block("W2", columns), identity("W2", columns)
    assert differs(by_hand("W2", columns, replace(q, z=q.a)), true, origin)


@pytest.mark.parametrize("columns", ["W1", "b1"])
def test_the_rows_of_the_second_weights_need_the_second_weights_the_slope_and_the_inputs(columns):
    q, true = samples(PROBLEM), check_block("W2", columns)
    without_slope = by_hand("W2", columns, replace(q, s=torch.ones_like(q.s)))
    without_weights = -ALPHA * mean("nj,nlw->jlw", q.z, q.S).reshape(12, 4)
    assert differs(without_slope, true)
    assert differs(without_weights, true)
    assert without_weights.shape != true.shape
    assert gap(without_weights, by_autodiff("W2", "b2")) <= AGREE  # it is the block of another column
    if columns == "W1":
        without_inputs = by_hand("W2", "b1", q)
        assert without_inputs.shape == (12, 3)
        assert true.shape == (12, 15)
        assert differs(without_inputs.repeat_interleave(5, 1), true)
        assert differs(without_inputs.repeat(1, 5), true)  # nor taking it for every input


def test_the_hidden_biases_by_the_second_weights_hold_the_activations_not_the_inputs():
    q, true = samples(PROBLEM), check_block("b1", "W2")
    assert true.shape == (3, 3 * 4)
    printed = -ALPHA * mean("njw,nu->juw", q.C, q.x).reshape(3, -1)
    assert printed.shape == (3, 5 * 4)


def test_no_two_blocks_have_the_same_shape():
    sizes = sizes_of(PROBLEM)
    shapes = [tuple(check_block(rows, columns).shape) for rows, columns in BLOCKS]
    assert shapes == [(sizes[rows], sizes[columns]) for rows, columns in BLOCKS]
    assert len(set(shapes)) == 16
    mnist = jo.TwoLayerLoss(torch.zeros(1, 784), [0], hidden=50, classes=10).parameters
    assert [mnist[name].size for name in NAMES] == [39_200, 50, 500, 10]


@pytest.mark.parametrize("rows, columns", [(r, c) for r, c in BLOCKS if NAMES.index(r) < NAMES.index(c)])
def test_the_blocks_below_the_diagonal_are_the_transposes_of_those_above(rows, columns):
    above, below = check_block(rows, columns), check_block(columns, rows)
    q = samples(PROBLEM)
    assert gap(below, above.T) <= AGREE
    assert gap(by_hand(columns, rows, q), by_hand(rows, columns, q).T) <= AGREE
    assert gap(from_the_package(columns, rows), from_the_package(rows, columns).T) <= AGREE
    slip = replace(q, z=q.a)  # on one side only: A1 for Z1 in the rows of W2
    if columns == "W2":
        assert differs(by_hand(columns, rows, slip), above.T)
    if rows == "W2":
        assert differs(by_hand(rows, columns, slip).T, below)


def test_the_second_weights_by_themselves_differentiate_the_loss_not_the_output():
    q, true = samples(PROBLEM), check_block("W2", "W2")
    W1, b1, W2, b2 = PROBLEM.split(PROBLEM.theta())
    slopes = jacrev(lambda W2: torch.softmax(torch.sigmoid(q.x @ W1 + b1) @ W2 + b2, 1))(W2)
    assert slopes.shape == (11, 4, 3, 4)
    assert true.shape == (3 * 4, 3 * 4)
    assert gap(torch.einsum("nv,nlw->nlvw", q.z, q.S), slopes) <= AGREE
    assert gap(-ALPHA * slopes.mean(0).reshape(4, 12), by_autodiff("b2", "W2")) <= AGREE  # the block of another row
    per_sample = -ALPHA * slopes.reshape(11 * 4, 12)
    assert differs(per_sample, true)
    with_one_activation = identity("W2", "W2") - ALPHA * slopes.mean(0).reshape(4, 12).repeat(3, 1)
    assert differs(with_one_activation, true, identity("W2", "W2"))


def test_the_hidden_layer_is_not_the_argument_of_softmax():
    q, theta = samples(PROBLEM), PROBLEM.theta()
    _, _, W2, b2 = PROBLEM.split(theta)
    A2 = q.z @ W2 + b2
    assert gap(A2, PROBLEM.logits(theta)) <= AGREE
    assert q.z.shape == (11, 3)
    assert A2.shape == (11, 4)
    square = TwoLayer(11, 5, 3, 3, seed=320)  # where both have one shape, softmax(Z1) uses neither W2 nor b2
    x, labels = square.data()

    def printed_value(theta):
        W1, b1, _, _ = square.split(theta)
        return torch.nn.functional.cross_entropy(torch.sigmoid(x @ W1 + b1), labels)

    printed = jacobian_of_the_update(printed_value, square.theta())
    for rows, columns in BLOCKS:
        true, origin = by_autodiff(rows, columns, square), identity(rows, columns, square)
        assert gap(by_hand(rows, columns, samples(square), square), true, origin) <= AGREE
        assert gap(from_the_package(rows, columns, square), true, origin) <= AGREE
        found = block_of(printed, rows, columns, square)
        assert differs(found, true, origin)
        if {"W2", "b2"} & {rows, columns}:
            assert torch.equal(found, origin)


# --- the document itself -----------------------------------------------------------------------------------------


def test_the_document_names_every_test_and_no_other():
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    here = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    named = re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    assert set(named) == here


def test_every_formula_of_the_document_survives_markdown():
    text = re.sub(r"```.*?```|`[^`\n]*`", "", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    displays = re.findall(r"^\$\$\n(.+)\n\$\$$", text, re.MULTILINE)
    rest = re.sub(r"^\$\$\n.+\n\$\$$", "", text, flags=re.MULTILINE)
    inline = re.findall(r"(?<![^\s(])\$([^$\n]+)\$(?![^\s.,;:)])", rest)
    assert len(displays) >= 16
    assert text.count("$") == 4 * len(displays) + 2 * len(inline)
    for formula in displays + inline:
        assert formula == formula.strip()
        assert not re.search(r"\\[^A-Za-z]", formula), formula  # Markdown takes the backslash of an escape away
        assert not re.search(r"[*|<>`]", formula), formula
        assert not re.search(r"(?<![A-Za-z0-9])_", formula), formula  # after a letter, _ opens no emphasis
        assert formula.count("{") == formula.count("}")
