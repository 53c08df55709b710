"""ViZer: improve a captioner with unlabelled images."""
