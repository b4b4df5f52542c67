//! Shows events: on a terminal, as plain lines, as JSON.
