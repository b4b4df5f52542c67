//! Provisioners: what changes the guest.
