//! What must hold in the guest; checks change nothing.
