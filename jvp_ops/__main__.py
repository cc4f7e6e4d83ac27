"""``python -m jvp_ops`` is ``jvp-ops``."""

import sys

from jvp_ops.cli import main

if __name__ == "__main__":
    sys.exit(main())
