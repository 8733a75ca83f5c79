//! The GGUF file: parse, map, write.
