"""An image is evaluated once: vision features, prompts and preprocessing are computed once per distinct image."""
