//! Reads a TOML document into a type, and reports everything that is wrong with it at once.
