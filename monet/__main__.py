"""`python -m monet` is the `monet` command."""

import sys

from monet.cli import main

sys.exit(main())
