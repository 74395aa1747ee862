"""Training encoders and neural volumes: losses, winners, simulated images, and the loop around them."""
