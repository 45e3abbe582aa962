"""Other job systems recovering their own stuck jobs by their own means, and Unstick over their tables."""
