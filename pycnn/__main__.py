"""`python -m pycnn` is the command line."""

import sys

from pycnn.cli import main

sys.exit(main())
