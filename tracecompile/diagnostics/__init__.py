"""What a user looks at: fidelity, memory, reports."""
