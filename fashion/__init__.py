"""The parts that the scripts share. None names a network; only cli names options."""
