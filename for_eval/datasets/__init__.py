"""The published datasets: where they are, how to get them, and whether what is on disk is whole."""
