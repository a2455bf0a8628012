"""Write, verify and open checkpoints, and start runs from them."""
