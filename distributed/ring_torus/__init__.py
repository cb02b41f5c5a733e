"""Several rings of stages side by side, whose equal stages sum their gradients: a torus of two dimensions."""
