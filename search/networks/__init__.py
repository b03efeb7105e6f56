"""Networks of users: the `.kerf` file, its closed set of operators, and the way from a torch module and back."""
