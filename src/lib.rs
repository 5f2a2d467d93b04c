//! meshd
pub mod mesh;
