"""What the study found: metrics with intervals, plots, and one self-contained HTML page. Plain arrays in, no torch."""
