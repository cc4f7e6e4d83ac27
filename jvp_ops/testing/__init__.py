r"""Operators whose eigenvalues are known: to try a solver on, ours or another.

Every function returns a `Spectrum`: an operator and its exact eigenvalues, where they are known.

Examples
--------
>>> import jvp_ops as jo
>>> from jvp_ops.testing import mikota
>>> jo.eigenpairs(mikota(300).operator, 3, "LA").values.round(6).tolist()
[90000.0, 89401.0, 88804.0]
"""

from jvp_ops.testing._operators import Spectrum as Spectrum
from jvp_ops.testing._operators import conjugated as conjugated
from jvp_ops.testing._operators import operator_of as operator_of
from jvp_ops.testing._spectra import SPECTRA as SPECTRA
from jvp_ops.testing._spectra import grcar as grcar
from jvp_ops.testing._spectra import heavy_ball as heavy_ball
from jvp_ops.testing._spectra import jordan as jordan
from jvp_ops.testing._spectra import laplacian as laplacian
from jvp_ops.testing._spectra import mikota as mikota
from jvp_ops.testing._spectra import spectrum as spectrum
from jvp_ops.testing._spectra import with_eigenvalues as with_eigenvalues
