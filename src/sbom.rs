//! The software bill of materials: which packages are in a template, as `CycloneDX` 1.5.
//!
//! ```text
//! metadata    when, by which forge, the template with its release, the plan's digest
//! components  the operating system, then each package, by its package URL
//! ```
//!
//! Equal inputs give equal bills but for the timestamp: the serial number is made of all the rest.

use cyclonedx_bom::errors::JsonWriteError;
use cyclonedx_bom::external_models::date_time::DateTime;
use cyclonedx_bom::external_models::normalized_string::NormalizedString;
use cyclonedx_bom::external_models::uri::Purl;
use cyclonedx_bom::models::bom::{Bom, SpecVersion, UrnUuid};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::models::organization::{OrganizationalContact, OrganizationalEntity};
use cyclonedx_bom::models::property::{Properties, Property};
use cyclonedx_bom::models::tool::Tools;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use crate::artifact::{self, Manifest, Os};

/// The bill's file name in the artifact's folder.
pub const FILE: &str = "sbom.cdx.json";

/// What `dpkg-query -W -f` is asked for, so that [`parse_packages`] can read it.
pub const QUERY: &str = "${db:Status-Status}\\t${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\t\
                         ${source:Version}\\t${Maintainer}\\n";

/// The states of packages that have no files (dpkg(1)), or not all of them.
const ABSENT: [&str; 3] = ["not-installed", "config-files", "half-installed"];

/// What a package URL may hold as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// A package, as dpkg knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// What a manifest has of it.
    pub facts: artifact::Package,
    /// The source package that it was built from, and that one's version.
    pub source: (String, String),
    /// Who maintains it, `NAME <ADDRESS>`.
    pub maintainer: String,
}

/// Reads what dpkg-query prints for [`QUERY`], sorted by name; packages that are not there are left out, and
/// lines of another shape.
#[must_use]
pub fn parse_packages(text: &str) -> Vec<Package> {
    let mut packages: Vec<_> = text.lines().filter_map(parse_package).collect();
    packages.sort_by(|a, b| (&a.facts.name, &a.facts.arch).cmp(&(&b.facts.name, &b.facts.arch)));
    packages
}

fn parse_package(line: &str) -> Option<Package> {
    let mut fields = line.splitn(7, '\t').map(str::to_owned);
    let (state, name, version, arch) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let (source, source_version, maintainer) = (fields.next()?, fields.next()?, fields.next()?);
    let is_there = !ABSENT.contains(&state.as_str()) && !version.is_empty();
    is_there.then_some(Package {
        facts: artifact::Package { name, version, arch },
        source: (source, source_version),
        maintainer,
    })
}

/// Returns the bill of an artifact's packages, as JSON.
///
/// # Errors
/// When the crate cannot write it; nothing that a guest says makes it so.
pub fn render(manifest: &Manifest, packages: &[Package]) -> Result<Vec<u8>, JsonWriteError> {
    let mut bom = bom(manifest, packages);
    let id = uuid::Builder::from_custom_bytes(first_bytes(&Sha256::digest(json(bom.clone())?)));
    bom.serial_number = UrnUuid::new(format!("urn:uuid:{}", id.into_uuid())).ok();
    if let Some(metadata) = &mut bom.metadata {
        metadata.timestamp = DateTime::try_from(manifest.built_at.clone()).ok();
    }
    let mut text = json(bom)?;
    text.push(b'\n');
    Ok(text)
}

fn json(bom: Bom) -> Result<Vec<u8>, JsonWriteError> {
    let mut text = Vec::new();
    bom.output_as_json(&mut text, SpecVersion::V1_5)?;
    Ok(text)
}

fn first_bytes(digest: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes
}

/// Returns a bill without serial number and timestamp.
fn bom(manifest: &Manifest, packages: &[Package]) -> Bom {
    let (os, forge) = (&manifest.os, &manifest.forge);
    let tool = Component::new(Classification::Application, "forge", &forge.version, None);
    let template = Component::new(
        Classification::OperatingSystem,
        &manifest.name,
        &manifest.release,
        Some("template".into()),
    );
    let metadata = Metadata {
        tools: Some(Tools::Object { services: None, components: Some(Components(vec![tool])) }),
        component: Some(template),
        properties: Some(Properties(vec![Property::new("forge:plan", &manifest.plan)])),
        ..Metadata::default()
    };
    let system = Component::new(Classification::OperatingSystem, &os.id, &os.version, Some("os".into()));
    let components = std::iter::once(system).chain(packages.iter().map(|package| component(package, os)));
    Bom {
        serial_number: None,
        metadata: Some(metadata),
        components: Some(Components(components.collect())),
        spec_version: SpecVersion::V1_5,
        ..Bom::default()
    }
}

fn component(package: &Package, os: &Os) -> Component {
    let artifact::Package { name, version, .. } = &package.facts;
    let purl = purl(&package.facts, os);
    let (source, source_version) = &package.source;
    let properties =
        vec![Property::new("forge:source", source), Property::new("forge:source-version", source_version)];
    Component {
        supplier: supplier(&package.maintainer),
        // Any text is taken.
        purl: purl.parse::<Purl>().ok(),
        properties: Some(Properties(properties)),
        ..Component::new(Classification::Library, name, version, Some(purl))
    }
}

/// Returns a package's URL, such as `pkg:deb/ubuntu/vim@2:9.1.0016-1?arch=amd64&distro=ubuntu-24.04`
/// (package-url/purl-spec, type `deb`).
fn purl(package: &artifact::Package, os: &Os) -> String {
    let plain = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    let (id, release) = (plain(&os.id), plain(&os.version));
    let (name, version, arch) = (plain(&package.name), plain(&package.version), plain(&package.arch));
    // What is never released has no version.
    let distro = if release.is_empty() { id.clone() } else { format!("{id}-{release}") };
    format!("pkg:deb/{id}/{name}@{version}?arch={arch}&distro={distro}")
}

fn supplier(maintainer: &str) -> Option<OrganizationalEntity> {
    let (name, address) = match maintainer.rsplit_once(" <") {
        Some((name, address)) => (name, address.strip_suffix('>')),
        None => (maintainer, None),
    };
    let contact = |address: &str| OrganizationalContact {
        email: Some(NormalizedString::new(address)),
        ..OrganizationalContact::default()
    };
    (!name.is_empty()).then(|| OrganizationalEntity {
        contact: address.map(|address| vec![contact(address)]),
        ..OrganizationalEntity::new(name)
    })
}

#[cfg(test)]
mod tests {
    use cyclonedx_bom::validation::Validate as _;

    use super::*;

    const LISTED: &str = "\
        installed\tzip\t3.0-15\tamd64\tzip\t3.0-15\tUbuntu Developers <devel@lists.example.org>\n\
        installed\tlibstdc++6\t14.2.0-4ubuntu2~24.04\tamd64\tgcc-14\t14.2.0-4ubuntu2~24.04\tGCC\n\
        installed\tvim\t2:9.1.0016+dfsg-1\tamd64\tvim\t2:9.1.0016+dfsg-1\t\n\
        config-files\tgone\t1.0\tamd64\tgone\t1.0\tx\n\
        half-installed\tghost\t1.0\tamd64\tghost\t1.0\tx\n\
        triggers-pending\tman-db\t2.12.0\tamd64\tman-db\t2.12.0\tA <a@example.org> <b@example.org>\n\
        not-installed\todd\t\t\todd\t\t\n\
        odd\n";

    fn manifest() -> Manifest {
        Manifest::parse(include_bytes!("../tests/golden/manifest/2.json")).unwrap()
    }

    fn bill(manifest: &Manifest, listed: &str) -> String {
        String::from_utf8(render(manifest, &parse_packages(listed)).unwrap()).unwrap()
    }

    #[test]
    fn packages_are_sorted_and_those_that_are_not_there_left_out() {
        let names: Vec<_> = parse_packages(LISTED).into_iter().map(|package| package.facts.name).collect();
        assert_eq!(names, ["libstdc++6", "man-db", "vim", "zip"]);
    }

    #[test]
    fn a_bill_is_what_the_golden_one_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sbom/four.cdx.json");
        let actual = bill(&manifest(), LISTED);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &actual).unwrap();
        }
        let expected = std::fs::read_to_string(path).unwrap();
        assert_eq!(actual, expected, "{path} differs (UPDATE_GOLDEN=1 writes it)");
    }

    #[test]
    fn a_system_without_releases_has_no_version_in_package_urls() {
        let os = Os { id: "debian".into(), ..Os::default() };
        let package = &parse_packages(LISTED)[3].facts;
        assert_eq!(purl(package, &os), "pkg:deb/debian/zip@3.0-15?arch=amd64&distro=debian");
    }

    #[test]
    fn a_bill_holds_to_the_specification() {
        for listed in [LISTED, ""] {
            let text = bill(&manifest(), listed);
            let bom = Bom::parse_from_json(text.as_bytes()).unwrap();
            let result = bom.validate_version(SpecVersion::V1_5);
            assert!(result.passed(), "{result:#?}");
            assert_eq!(bom.components.unwrap().0.len(), parse_packages(listed).len() + 1);
        }
    }

    #[test]
    fn equal_inputs_give_equal_bills_but_for_the_time() {
        let first = manifest();
        let later =
            Manifest { built_at: "2027-01-01T00:00:00Z".into(), run: "another".into(), ..first.clone() };
        let differing = |a: &str, b: &str| -> Vec<String> {
            let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
            lines.map(|(a, _)| a.trim().split('"').nth(1).unwrap().to_owned()).collect()
        };
        assert_eq!(differing(&bill(&first, LISTED), &bill(&later, LISTED)), ["timestamp"]);
        let other = Manifest { plan: "sha256:6f".into(), ..first.clone() };
        assert_eq!(differing(&bill(&first, LISTED), &bill(&other, LISTED)), ["serialNumber", "value"]);
        let newer = LISTED.replace("3.0-15\tamd64", "3.0-16\tamd64");
        let fields = differing(&bill(&first, LISTED), &bill(&first, &newer));
        assert_eq!(fields, ["serialNumber", "bom-ref", "version", "purl"]);
    }
}
