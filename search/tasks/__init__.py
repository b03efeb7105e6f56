"""What a network learns and how it is judged: classes by default, or a task that an installed package gives."""
