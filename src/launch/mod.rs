//! Starting programs and keeping them running.
