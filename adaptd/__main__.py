"""`python -m adaptd` is `adaptd`."""

import sys

from adaptd.cli import main

sys.exit(main())
