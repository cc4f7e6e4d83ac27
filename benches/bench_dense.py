"""The whole dense matrix of the reference problem, against the peer column by column.

Ours runs in a child process, whose peak memory is its own. The peer is timed on a sample of columns, as wide products
at its best batch size, and extrapolated to all of them. In a smoke run the problem is small.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_products import Problem
from paired import relative_difference

CHILD = """
import json, resource, sys, time
import jvp_ops as jo
samples, hidden, dtype, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
data = jo.load_mnist()
data = data if samples == len(data) else data.subset(samples)
loss = jo.TwoLayerLoss(data, hidden=hidden, dtype=dtype)
H = loss.hessian(loss.initial(rng=0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
began = time.perf_counter()
matrix = H.dense(out=out or None)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
error = jo.product_error(H, matrix, probes=2)
bytes_held = matrix.nbytes
print(json.dumps({"seconds": seconds, "peak": peak, "before": before, "matrix": bytes_held, "error": error}))
"""


def assemble(samples: int, hidden: int, dtype: str, out: str = "") -> dict[str, float]:
    """Assemble in a child process; return seconds, peak bytes and the error of random products."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(samples), str(hidden), dtype, out], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_matrix(dtype: str, mnist: Any, benchmark: Any, tmp_path: Path) -> None:
    samples, hidden, sample = (2_000, 8, 16) if benchmark.disabled else (60_000, 50, 64)
    data = mnist if samples == len(mnist) else mnist.subset(samples)
    ours = assemble(samples, hidden, dtype, str(tmp_path / "H.npy") if dtype == "float64" else "")
    assert ours["error"] < (1e-5 if dtype == "float32" else 1e-12)
    problem = Problem(data, "cpu", hidden=hidden)
    peer = problem.curvlinops(1_000)
    n = problem.loss.parameters.size
    columns = torch.zeros(n, sample)
    chosen = np.random.default_rng(0).choice(n, sample, replace=False)
    columns[chosen, torch.arange(sample)] = 1
    parts = problem.split(columns)
    began = time.perf_counter()
    images = problem.join(peer @ parts)
    a_column = (time.perf_counter() - began) / sample
    expected = problem.loss.hessian(problem.theta).dense(cols=chosen)
    assert relative_difference(images, expected) < 1e-4
    benchmark.extra_info["milliseconds"] = {
        "ours": 1e3 * ours["seconds"],
        "curvlinops, all columns": 1e3 * a_column * n,
    }
    benchmark.extra_info["ratios"] = {"curvlinops / ours": a_column * n / ours["seconds"]}
    benchmark.extra_info |= {
        "n": n,
        "dtype": dtype,
        **{name: ours[name] for name in ("peak", "before", "matrix", "error")},
    }
    benchmark.extra_info["into"] = "a file" if dtype == "float64" else "memory"
    benchmark.pedantic(lambda: None, rounds=1)  # the figures are above: one assembly is timed, in its own process
