"""Local web pages on which people judge and correct captions; needs ``captune[annotate]``."""
