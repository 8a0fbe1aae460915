//! The `outrigger` binary: everything is in the library.

/// Half the cost of glibc's for the many small, short-lived pieces of a request; docs/performance.md has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    outrigger::cli::main()
}
