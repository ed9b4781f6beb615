"""One question per module; run one with: python -m experiments.NAME."""
