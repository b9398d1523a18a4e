"""The engine: unlearns and measures."""

import os

# Threads that spin while they wait make a run twenty times slower where anything else wants one of their cores. The
# OpenMP runtime reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
