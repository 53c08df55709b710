"""Encoder pairs: heads that bring a frozen image encoder and a frozen text encoder together."""
