"""What `recall demo` does: a replay of real activity in lock-step, and the story of one user."""
