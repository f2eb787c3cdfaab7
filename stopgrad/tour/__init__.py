"""``python -m stopgrad tour``: what the project can do, on a tiny GAN, in a terminal. It needs torch alone."""
