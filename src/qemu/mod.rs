//! A local QEMU: arguments, process, QMP.
