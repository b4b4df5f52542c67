//! The SMBIOS system record of a machine, as a file.
//!
//! The serial number carries the build's URL with its unguessable token. On QEMU's command line
//! every user of the host could read it in `/proc`; `-readconfig` ignores `[smbios]`; what is left
//! is `-smbios file=`, which takes one binary structure.

use uuid::Uuid;

/// Returns a type 1 structure (DMTF DSP0134 §7.2) with QEMU's own manufacturer and product.
///
/// Guests tell from the manufacturer that they run in QEMU, so it stays what QEMU itself says.
#[must_use]
pub fn system_record(product: &str, uuid: Uuid, serial: &str) -> Vec<u8> {
    const TYPE: u8 = 1;
    const LENGTH: u8 = 0x1b;
    const HANDLE: u16 = 0x0100;
    const WAKE_UP_BY_POWER_SWITCH: u8 = 6;
    let mut record = vec![TYPE, LENGTH];
    record.extend(HANDLE.to_le_bytes());
    // Strings are counted from 1: manufacturer, product, version (none), serial.
    record.extend([1, 2, 0, 3]);
    // From SMBIOS 2.6 on the first three fields of the UUID are little-endian.
    record.extend(uuid.to_bytes_le());
    // Neither SKU nor family.
    record.extend([WAKE_UP_BY_POWER_SWITCH, 0, 0]);
    for text in ["QEMU", product, serial] {
        record.extend(text.bytes().filter(|&byte| byte != 0));
        record.push(0);
    }
    record.push(0);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_its_fields_in_place() {
        let uuid = Uuid::parse_str("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        let record = system_record("Board", uuid, "a\0b");
        assert_eq!(record[..8], [1, 0x1b, 0, 1, 1, 2, 0, 3]);
        assert_eq!(record[8..16], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(record[16..24], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(record[24..27], [6, 0, 0]);
        assert_eq!(&record[27..], b"QEMU\0Board\0ab\0\0");
    }
}
