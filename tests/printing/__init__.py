"""Programs as text: what is printed runs, and makes what the model makes."""
