//! Does nothing: cargo wants a build script where `links` is set, and `links` is what keeps two versions of this crate, which would be
//! two registries that cannot see each other's entries, out of one binary.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
