"""Compose and render the music, train the embedded model and its judges, measure and ship them."""
