"""What curation is worth: filters, rewriting and levels of captions whose noise is known exactly."""
