"""What every bench shares: where it runs, what the results say of the machine, and how figures are kept."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from paired import paired_times

import jvp_ops as jo

PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "torch", "numpy", "scipy", "jvp-ops")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what explains a figure, and nothing that names the machine."""
    brand = machine_info.get("cpu", {}).get("brand_raw", platform.processor())
    machine_info.clear()
    machine_info["cpu"] = brand
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["threads"] = torch.get_num_threads()
    machine_info["python"] = platform.python_version()
    machine_info["versions"] = {name: version(name) for name in PEERS}


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    """Keep the commit alone."""
    for name in ("project", "branch"):
        commit_info.pop(name, None)


@pytest.fixture(scope="session")
def device() -> str:
    """Benches run on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def mnist() -> Any:
    """All 60,000 training images."""
    try:
        return jo.load_mnist()
    except (jo.DataError, jo.MissingExtraError) as error:
        pytest.skip(f"MNIST is needed: {error}")


@pytest.fixture
def race(benchmark: Any) -> Any:
    """Time functions in turns, ours through pytest-benchmark too, and keep medians and ratios with the result."""

    def run(functions: dict[str, Any], *, rounds: int = 15, **figures: Any) -> dict[str, Any]:
        smoke = benchmark.disabled
        times = paired_times(functions, rounds=1 if smoke else rounds)
        benchmark.extra_info["milliseconds"] = {name: round(1e3 * float(np.median(t)), 3) for name, t in times.items()}
        benchmark.extra_info.update(figures)
        benchmark.pedantic(functions["ours"], rounds=1 if smoke else 5)
        return times

    run.info = benchmark.extra_info  # type: ignore[attr-defined]
    return run
