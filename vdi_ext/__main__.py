"""``python -m vdi_ext``: the command line."""

import sys

from .cli import main

sys.exit(main())
