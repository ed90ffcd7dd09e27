"""A job: reads the YAML file and the flags, checks them, and resolves them into one `Job`."""
