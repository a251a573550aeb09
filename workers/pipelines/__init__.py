"""One pipeline a file: what each agent does with a batch, in numbered steps."""
