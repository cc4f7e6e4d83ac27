"""Every operator of the registry passes through one comparison with its dense oracle."""

import numpy as np
import pytest
import torch
from cases import CASES, numbers

TOLERANCE = {torch.float32: 32 * 2.0**-23, torch.float64: 1e-12}


def close(actual, expected, scale, dtype):
    """Compare entry by entry, to the tolerance of a dtype times the scale of what was added up."""
    assert isinstance(actual, np.ndarray)
    assert actual.shape == expected.shape
    assert actual.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    assert np.abs(actual - expected).max(initial=0) <= TOLERANCE[dtype] * scale


def compare(A, M, dtype, device):
    """Multiply by A in every way there is and compare with the matrix M."""
    n_rows, n_columns = M.shape
    size = np.linalg.norm(M, 2)
    assert A.shape == M.shape
    assert A.rows.size == n_rows
    assert A.columns.size == n_columns
    assert A.torch_dtype == dtype
    assert A.device == device
    assert A.symmetric == (n_rows == n_columns and np.abs(M - M.T).max() <= 1e-13 * size)

    views = [(A, False)] if A.T is A and A.H is A else [(A, False), (A.T, True), (A.H, True)]
    assert len(views) == (1 if A.symmetric else 3)
    for product, transposed in views:
        N = M.T if transposed else M
        close(product.dense().cpu().numpy(), N, np.abs(M).max(), dtype)
        for shape in ((N.shape[1],), (N.shape[1], 1), (N.shape[1], 3)):
            x = numbers(1, *shape)
            expected, scale = N @ x.numpy(), size * float(x.norm())
            tensor, array = x.to(device, dtype), x.numpy().astype(product.dtype)
            for image in (product.apply(tensor), product @ tensor, product.dot(tensor), product * tensor):
                assert image.device == device
                close(image.cpu().numpy(), expected, scale, dtype)
            close(product @ array, expected, scale, dtype)
            close(product.dot(array), expected, scale, dtype)
            close(product.matvec(array) if x.ndim == 1 else product.matmat(array), expected, scale, dtype)
            if shape[1:] == (1,):
                close(product.matvec(array), expected, scale, dtype)
            y = numbers(2, N.shape[0], *shape[1:])
            expected, scale = N.T @ y.numpy(), size * float(y.norm())
            tensor, array = y.to(device, dtype), y.numpy().astype(product.dtype)
            close(product.apply_adjoint(tensor).cpu().numpy(), expected, scale, dtype)
            close(product.rmatvec(array) if y.ndim == 1 else product.rmatmat(array), expected, scale, dtype)
            left = tensor if y.ndim == 1 else tensor.mT
            image = left @ product
            close((image if y.ndim == 1 else image.mT).cpu().numpy(), expected, scale, dtype)
            if y.ndim == 1:
                close(array @ product, expected, scale, dtype)
            else:
                close((array.T @ product).T, expected, scale, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_product_agrees_with_the_dense_oracle(case, dtype, device):
    compare(case.operator(dtype, device), case.oracle().numpy(), dtype, device)
