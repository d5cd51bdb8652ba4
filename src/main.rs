//! The binary: everything happens in [`flowvigil::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flowvigil::cli::main()
}
