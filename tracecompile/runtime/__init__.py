"""What a converted module does when it is called."""
