"""What ``make bench`` runs: one module for each figure, each measured side by side with its baseline."""
