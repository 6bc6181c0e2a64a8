"""Networks by kind, and the encoders and layers that they are built of. The only package that imports flax.linen."""
