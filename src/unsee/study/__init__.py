"""Studies of many runs: compare, search, ablate, sequences, the audit of measures, the demo."""
