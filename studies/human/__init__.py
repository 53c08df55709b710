"""Which scorers agree with people?"""
