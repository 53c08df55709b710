"""What the methods do on photographs: a captioner out of EfficientNet-Lite2 and SmolLM2-135M, on Flickr8k."""
