"""SC-Captioner: a captioner learns to correct its own caption."""
