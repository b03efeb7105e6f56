"""Search methods: each proposes candidates of a `SearchSpace` and learns from their figures."""
