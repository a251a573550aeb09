"""A live system of one's own, and a data set streamed through it: what the demo and evaluations share."""
