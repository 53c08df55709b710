"""What the studies share: rows, runner, store, training, evaluation images, tables and plots."""
