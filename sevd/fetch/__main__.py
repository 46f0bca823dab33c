"""`python -m sevd.fetch`."""

from __future__ import annotations

import sys

from sevd.fetch.main import main

if __name__ == "__main__":
    sys.exit(main())
