use crate::number::{scaled, split_number};
use crate::sources::Places;
use crate::value::{Raw, Value};

/// The units, largest first. The first that divides a number is written.
const UNITS: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

const GIB: u64 = 1 << 30;

/// A number of bytes, written as `4194304`, `10GB` (10^9 each) or `512MiB` (2^20 each).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// A number of bytes, written in GiB if it has no unit (`local_cache.max_size_gb`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GibSize(u64);

impl ByteSize {
    /// Creates a size from a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Creates a size from a number of KiB.
    pub(crate) const fn from_kib(kib: u32) -> Self {
        Self((kib as u64) << 10)
    }

    /// Creates a size from a number of GiB.
    pub(crate) const fn from_gib(gib: u32) -> Self {
        Self((gib as u64) << 30)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl GibSize {
    /// Creates a size from a number of GiB.
    pub(crate) const fn from_gib(gib: u32) -> Self {
        Self((gib as u64) << 30)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Value for ByteSize {
    fn kind() -> String {
        "size".to_owned()
    }

    fn accepts() -> String {
        "a size: bytes (4194304) or a number with its unit (10GB, 512MiB)".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        let (number, unit) = split_size(raw.word()?);
        match unit {
            // Bytes are whole.
            "" if number.contains('.') => None,
            "" => scaled(number, 1).map(Self),
            unit => with_unit(number, unit).map(Self),
        }
    }

    fn render(&self) -> String {
        if self.0 == 0 {
            "0".to_owned()
        } else {
            render_with_unit(self.0)
        }
    }
}

impl Value for GibSize {
    fn kind() -> String {
        "size in GiB".to_owned()
    }

    fn accepts() -> String {
        "a number of GiB (10, 0.5) or a size with its unit (500MB, 20GiB)".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        let (number, unit) = split_size(raw.word()?);
        match unit {
            "" => scaled(number, GIB).map(Self),
            unit => with_unit(number, unit).map(Self),
        }
    }

    fn render(&self) -> String {
        if self.0.is_multiple_of(GIB) {
            (self.0 / GIB).to_string()
        } else {
            render_with_unit(self.0)
        }
    }
}

fn split_size(text: &str) -> (&str, &str) {
    let (number, unit) = split_number(text);
    (number, unit.trim_start())
}

fn with_unit(number: &str, unit: &str) -> Option<u64> {
    // Kubernetes writes GiB as `Gi`. `G` is refused: it means 10^9 to some and 2^30 to others.
    let same = |name: &str| {
        unit.eq_ignore_ascii_case(name)
            || name.strip_suffix("iB").is_some_and(|prefix| {
                unit.strip_suffix('i')
                    .is_some_and(|unit| unit.eq_ignore_ascii_case(prefix))
            })
    };
    let (_, factor) = UNITS.iter().find(|(name, _)| same(name))?;
    scaled(number, *factor)
}

fn render_with_unit(bytes: u64) -> String {
    let exact = UNITS
        .iter()
        .find(|(_, factor)| bytes.is_multiple_of(*factor));
    exact.map_or_else(
        || format!("{bytes}B"),
        |(name, factor)| format!("{}{name}", bytes / factor),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        ByteSize::parse(&Raw::text(text), &Places::for_tests()).map(ByteSize::bytes)
    }

    fn gib(text: &str) -> Option<u64> {
        GibSize::parse(&Raw::text(text), &Places::for_tests()).map(GibSize::bytes)
    }

    #[test]
    fn decimal_and_binary_units_differ() {
        assert_eq!(bytes("4194304"), Some(4_194_304));
        assert_eq!(bytes("10GB"), Some(10_000_000_000));
        assert_eq!(bytes("10 gib"), Some(10 << 30));
        assert_eq!(bytes("512MiB"), Some(512 << 20));
        assert_eq!(bytes("512Mi"), Some(512 << 20));
        assert_eq!(bytes("1.5KiB"), Some(1536));
        assert_eq!(bytes("0"), Some(0));
    }

    #[test]
    fn a_max_size_gb_without_a_unit_counts_gib() {
        assert_eq!(gib("10"), Some(10 << 30));
        assert_eq!(gib("0.5"), Some(512 << 20));
        assert_eq!(gib("500MB"), Some(500_000_000));
        assert_eq!(gib("1073741824B"), Some(1 << 30));
    }

    #[test]
    fn sizes_that_are_ambiguous_negative_or_too_large_are_refused() {
        for text in [
            "",
            "-1GiB",
            "10G",
            "1.5",
            "GB",
            "1 2GB",
            "10GBB",
            "1e9",
            "20000000PB",
            "i",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
        for text in ["-1", "ten", "1.2.3", "99999999999999", "10G"] {
            assert_eq!(gib(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_is_exact() {
        assert_eq!(ByteSize::from_gib(1).render(), "1GiB");
        assert_eq!(ByteSize(10_000_000_000).render(), "10GB");
        assert_eq!(ByteSize::from_kib(4096 - 64).render(), "4032KiB");
        assert_eq!(GibSize::from_gib(10).render(), "10");
        assert_eq!(GibSize(500_000_000).render(), "500MB");
        assert_eq!(GibSize(1_073_741_825).render(), "1073741825B");
    }

    proptest! {
        #[test]
        fn every_size_can_be_written_and_read(size: u64) {
            prop_assert_eq!(bytes(&ByteSize(size).render()), Some(size));
            prop_assert_eq!(gib(&GibSize(size).render()), Some(size));
        }

        #[test]
        fn no_text_panics(text in "[0-9.kKmMgGtTpPiIbB +-]{0,40}|\\PC{0,20}") {
            let _ = bytes(&text);
            let _ = gib(&text);
        }
    }
}
