//! The rate and latency of a link.

use std::{fmt, str::FromStr, time::Duration};

use tokio::time::Instant;

/// A bandwidth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    bits_per_second: u64,
}

/// The units in bits per second, which are decimal for networks.
const UNITS: [(&str, u64); 4] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1000),
    ("bit", 1),
];

impl Rate {
    /// Creates a rate from bits per second, at least one.
    pub const fn bits(bits_per_second: u64) -> Self {
        assert!(bits_per_second > 0, "a link that passes nothing");
        Self { bits_per_second }
    }

    /// Creates a rate from Mbit/s.
    pub const fn mbit(mbit_per_second: u64) -> Self {
        Self::bits(mbit_per_second * 1_000_000)
    }

    /// Returns the bytes that are sent in a time.
    pub(super) fn bytes_in(self, time: Duration) -> u64 {
        let bits = u128::from(self.bits_per_second) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }

    fn time_of(self, bytes: usize) -> Duration {
        let bits = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(8);
        let nanos = bits.saturating_mul(1_000_000_000) / u128::from(self.bits_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Parses a latency: `10ms`, `250us`, `1s`.
pub fn parse_latency(text: &str) -> Result<Duration, String> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    units
        .iter()
        .find_map(|(name, micros)| {
            let number: u64 = text.strip_suffix(name)?.parse().ok()?;
            number.checked_mul(*micros).map(Duration::from_micros)
        })
        .ok_or_else(|| format!("'{text}' is not a latency such as 10ms, 250us or 1s"))
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        UNITS
            .iter()
            .find_map(|(name, unit)| {
                let number: u64 = text.strip_suffix(name)?.parse().ok()?;
                number.checked_mul(*unit).filter(|&bits| bits > 0)
            })
            .map(Self::bits)
            .ok_or_else(|| {
                format!("'{text}' is not a rate such as 1Gbit, 100Mbit, 64kbit or 9600bit")
            })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_second;
        let (name, unit) = UNITS
            .into_iter()
            .find(|(_, unit)| bits.is_multiple_of(*unit))
            .unwrap_or(("bit", 1));
        write!(f, "{}{name}", bits / unit)
    }
}

/// Schedules the bytes of all connections one after the other.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    free: Option<Instant>,
}

impl Pacer {
    /// Returns the time at which the last of `bytes` leaves that are ready at `now`.
    pub(super) fn send(&mut self, now: Instant, rate: Option<Rate>, bytes: usize) -> Instant {
        let start = self.free.map_or(now, |free| free.max(now));
        let left = start + rate.map_or(Duration::ZERO, |rate| rate.time_of(bytes));
        self.free = Some(left);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_parsed_and_rendered() {
        for text in ["1Gbit", "1500Mbit", "10kbit", "7bit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "0Gbit",
            "fast",
            "1 Gbit",
            "-1bit",
            "99999999999999999999Gbit",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!("1000Mbit".parse::<Rate>().unwrap(), Rate::mbit(1000));
    }

    #[test]
    fn latencies_need_a_unit() {
        assert_eq!(parse_latency("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(parse_latency("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_latency("2s"), Ok(Duration::from_secs(2)));
        assert!(parse_latency("10").is_err());
        assert!(parse_latency("ms").is_err());
    }

    #[test]
    fn bytes_are_sent_one_after_the_other() {
        let mut pacer = Pacer::default();
        let (now, rate) = (Instant::now(), Some(Rate::mbit(8)));
        let ms = Duration::from_millis;
        assert_eq!(pacer.send(now, rate, 1000), now + ms(1));
        assert_eq!(pacer.send(now, rate, 2000), now + ms(3));
        // Idle time does not count.
        assert_eq!(pacer.send(now + ms(10), rate, 1000), now + ms(11));
        assert_eq!(pacer.send(now + ms(20), None, 1000), now + ms(20));
        assert_eq!(Rate::mbit(8).bytes_in(ms(3)), 3000);
    }
}
