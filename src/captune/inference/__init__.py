"""Captioning many images: the job, its order, and the settings that a caption file depends on."""
