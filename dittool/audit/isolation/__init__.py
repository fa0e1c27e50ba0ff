"""A stranger's model is judged in a process of its own: whatever its code does there, it does not reach us."""
