"""What the scripts share."""

import os
import sys

# Threads that wait for work let others run after a thousand checks (a few microseconds), which
# halves the time of a training on a busy machine. OpenMP reads this when torch is loaded, so the
# imports of fashion stand above those of torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Figures need no backend, and matplotlib cannot be imported with one that a script has inherited
# from a notebook.
if "ipykernel" not in sys.modules:
    os.environ.pop("MPLBACKEND", None)
