//! Pages, sequences and policy of the KV cache.
