"""The benchmarks of ``make bench``: one module for each figure, measured side by side with its baseline."""
