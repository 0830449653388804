"""The benchmarks' own protocols: what is asked, how answers are read, what they count for."""
