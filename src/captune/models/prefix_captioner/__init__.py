"""A captioner built from an image encoder, a projector and a language model."""
