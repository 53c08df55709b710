"""Tokenizer, n-grams and Java, shared by scorers."""
