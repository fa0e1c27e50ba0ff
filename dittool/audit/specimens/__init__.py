"""What the audit holds in its hand: what a rule may ask of a network, and who answers."""
