use crate::number::{scaled, split_number};
use crate::places::Places;
use crate::value::Value;

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

/// A number of bytes. Text without a unit counts in `UNIT` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size<const UNIT: u64>(u64);

/// A number of bytes, written in bytes if it has no unit: `4194304`.
pub type ByteSize = Size<1>;

/// A number of bytes, written in GiB if it has no unit (`local_cache.max_size_gb`).
pub type GibSize = Size<GIB>;

impl<const UNIT: u64> Size<UNIT> {
    /// Creates a size from a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl<const UNIT: u64> Value for Size<UNIT> {
    const KIND: &'static str = if UNIT == GIB { "size in GiB" } else { "size" };
    const ACCEPTS: &'static str = if UNIT == GIB {
        "a number of GiB (10, 0.5) or a size with its unit (500MB, 20GiB)"
    } else {
        "a size: bytes (4194304) or a number with its unit (10GB, 512MiB)"
    };

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        let (number, unit) = split_number(word);
        let factor = match unit.trim_start() {
            // Bytes are whole.
            "" if UNIT == 1 && number.contains('.') => None,
            "" => Some(UNIT),
            unit => factor(unit),
        };
        scaled(number, factor?).map(Self)
    }

    fn render(&self) -> String {
        let is_exact = |unit: u64| self.0.is_multiple_of(unit);
        if self.0 == 0 || UNIT > 1 && is_exact(UNIT) {
            return (self.0 / UNIT).to_string();
        }
        let unit = UNITS.iter().find(|(_, factor)| is_exact(*factor));
        let (name, factor) = unit.unwrap_or(&("B", 1));
        format!("{}{name}", self.0 / factor)
    }
}

fn factor(unit: &str) -> Option<u64> {
    // Kubernetes writes GiB as `Gi`. `G` is refused: it means 10^9 to some and 2^30 to others.
    let same = |name: &str| {
        unit.eq_ignore_ascii_case(name)
            || name.strip_suffix("iB").is_some_and(|prefix| {
                unit.strip_suffix('i')
                    .is_some_and(|unit| unit.eq_ignore_ascii_case(prefix))
            })
    };
    let (_, factor) = UNITS.iter().find(|(name, _)| same(name))?;
    Some(*factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        ByteSize::from_word(text, &Places::default()).map(ByteSize::bytes)
    }

    fn gib(text: &str) -> Option<u64> {
        GibSize::from_word(text, &Places::default()).map(GibSize::bytes)
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
        assert_eq!(ByteSize::from_bytes(GIB).render(), "1GiB");
        assert_eq!(ByteSize::from_bytes(10_000_000_000).render(), "10GB");
        assert_eq!(ByteSize::from_bytes(4032 << 10).render(), "4032KiB");
        assert_eq!(GibSize::from_bytes(10 * GIB).render(), "10");
        assert_eq!(GibSize::from_bytes(500_000_000).render(), "500MB");
        assert_eq!(GibSize::from_bytes(1_073_741_825).render(), "1073741825B");
    }

    proptest! {
        #[test]
        fn every_size_can_be_written_and_read(size: u64) {
            prop_assert_eq!(bytes(&ByteSize::from_bytes(size).render()), Some(size));
            prop_assert_eq!(gib(&GibSize::from_bytes(size).render()), Some(size));
        }

        #[test]
        fn no_text_panics(text in "[0-9.kKmMgGtTpPiIbB +-]{0,40}|\\PC{0,20}") {
            let _ = bytes(&text);
            let _ = gib(&text);
        }
    }
}
