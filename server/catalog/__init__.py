"""Networks and data sets that searches can name."""
