import os

import numpy
import pytest
import scipy
import torch
from hypothesis import settings

from jvp_ops.data._fetch import OFFLINE_VARIABLE
from jvp_ops.data._find import DATA_VARIABLE

os.environ.setdefault(OFFLINE_VARIABLE, "1")  # no test asks a mirror for data, nor a hub for models
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("jvp_ops", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("jvp_ops")

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
NO_MNIST = pytest.mark.skipif(
    not os.environ.get(DATA_VARIABLE), reason=f"{DATA_VARIABLE} does not name the folder of the MNIST files"
)


def pytest_report_header():
    return ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, numpy, scipy))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("mnist"):
            item.add_marker(NO_MNIST)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def device(request):
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def threads():
    """Let a test set torch's thread count, and put it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
