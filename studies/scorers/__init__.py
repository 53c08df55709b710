"""Which scorer tracks the truth?"""
