"""HAR: a captioner out of two frozen parts, in two stages."""
