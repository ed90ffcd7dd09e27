"""What the user asked for: the YAML file and the flags, checked as a whole and resolved into one `Job`."""
