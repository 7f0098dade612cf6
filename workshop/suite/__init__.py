"""Run the notebooks, draw the stored figures again, prepare Colab."""
