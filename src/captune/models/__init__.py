"""Captioners, encoders and answerers: everything that holds weights."""
