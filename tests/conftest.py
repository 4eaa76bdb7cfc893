"""Every test, and every process that a test starts, sees the installed package and one thread.

Python puts the working directory in front of the path of a child; in the checkout that is a `spikedeploy` whose `runtime` and `exporters`
are elsewhere.
"""

from __future__ import annotations

import os

os.environ["PYTHONSAFEPATH"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
