"""The problem statement as data. No torch: the API process imports this."""
