//! Messages in files: MCAP, written and read.
