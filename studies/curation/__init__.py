"""What curation is worth: filters and levels of captions whose noise is known exactly."""
