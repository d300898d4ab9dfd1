"""Command line, training loop, checkpoints, metrics, plots and export. Nothing is imported here: `--help` stays fast."""
