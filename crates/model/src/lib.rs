//! Architectures as data and one forward pass.
