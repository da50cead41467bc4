"""What the compiler asks about a program: its cycles, its elementwise operations, its spikes, its cuts."""
