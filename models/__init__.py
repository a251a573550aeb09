"""The two towers as data: what they see, how they are fitted, what a bundle holds. No server, no model runtime."""
