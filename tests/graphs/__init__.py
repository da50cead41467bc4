"""What builds graphs out of others."""
