"""What self-critical training adds to supervision, and what captions cost."""
