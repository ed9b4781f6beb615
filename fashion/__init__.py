"""The parts that the scripts share. Nothing in here names a network or a command-line option."""
