"""Command line, training loop, checkpoints, metrics, plots and export."""
