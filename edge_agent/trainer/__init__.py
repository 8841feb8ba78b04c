"""Training, kept away from serving. `ports` says what the supervisor needs, `process` and `inline` do it."""
