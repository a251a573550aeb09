"""What `recall doctor` checks, one subject a file, and the part of it that stops a worker at its start."""
