"""Forms in which people write models: each is converted right, or refused at its line."""
