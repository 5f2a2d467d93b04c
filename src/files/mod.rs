//! Files: shares, and what moves files between them and directories here.
