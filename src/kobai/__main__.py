"""``python -m kobai`` is the command ``kobai``."""

import sys

from kobai.cli import main

sys.exit(main())
