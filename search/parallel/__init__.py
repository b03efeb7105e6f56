"""Work of one search in several processes: the protocol (`crew`), this process, a local pool, and Ray."""
