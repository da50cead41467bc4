"""What is exported computes what the network computes."""
