//! Parses the command line, runs it, prints the failure, sets the exit code: nothing else.

fn main() {}
