//! Running programs for others, and having others run them.
