"""Monitor of reward hacking: what a run does to the scores that it does not optimise."""
