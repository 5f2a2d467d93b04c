//! How the program is laid out in memory.

fn main() {
    println!("cargo::rerun-if-changed=scripts/build.rs");
    // Functions of one module next to each other: a daemon then has few pages in memory of what it does not use, the command line
    // and the tools. GNU ld does that, which is where a C compiler is; lld does not.
    let linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if linux && release {
        println!("cargo::rustc-link-arg-bins=-fuse-ld=bfd");
        println!("cargo::rustc-link-arg-bins=-Wl,--sort-section=name");
    }
}
