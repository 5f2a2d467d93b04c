//! meshd
pub(crate) mod keys;
pub mod mesh;
pub(crate) mod wire;
