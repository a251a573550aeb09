"""What `recall bench` runs: each part on real servers, in one run with what it is compared to."""
