//! Pairs of files: a configuration, and what becomes of it.

use std::fs;
use std::path::Path;

/// Holds what `render` makes of each `*.conf` in `golden/FOLDER` against the file beside it;
/// `PVE_SIM_BLESS=1` writes those anew.
pub(crate) fn assert_golden(folder: &str, extension: &str, least: usize, render: fn(&str) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(folder);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        seen += 1;
        let (got, expected) = (render(&fs::read_to_string(&file).unwrap()), file.with_extension(extension));
        if std::env::var_os("PVE_SIM_BLESS").is_some() {
            fs::write(&expected, &got).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert!(got == expected, "{}: not as expected but\n{got}", file.display());
    }
    assert!(seen >= least, "only {seen} golden files in {}", folder.display());
}
