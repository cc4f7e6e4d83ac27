"""Where samples come from: every file is found or fetched, checked against a known sum, and only then read.

This package needs numpy alone; pooch is imported when a file has to be downloaded, torch never.
"""

from jvp_ops.data._dataset import Dataset as Dataset
from jvp_ops.data._fetch import fetch_file as fetch_file
from jvp_ops.data._find import find_file as find_file
from jvp_ops.data._find import is_cached as is_cached
from jvp_ops.data._idx import read_idx as read_idx
from jvp_ops.data._load import load_digits as load_digits
from jvp_ops.data._load import load_fashion_mnist as load_fashion_mnist
from jvp_ops.data._load import load_mnist as load_mnist
from jvp_ops.data._registry import SOURCES as SOURCES
from jvp_ops.data._registry import Source as Source
from jvp_ops.data._registry import SourceFile as SourceFile
from jvp_ops.data._verify import verified_content as verified_content
