"""The study's results: metrics with intervals, plots, and one self-contained HTML page. Takes plain arrays, no torch."""
