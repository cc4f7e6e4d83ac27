"""For people: the ``jvp-ops`` command."""

from jvp_ops.cli._main import main as main
