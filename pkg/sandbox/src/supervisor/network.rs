//! The loopback interface of a new network namespace, and the attempts to leave that.

use std::{fs, io};

use rustix::{
    io::read,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, sendto,
        socket_with,
    },
};

use crate::NetworkAttempts;

/// A request of type `RTM_NEWLINK` with an acknowledgement: a header and an `ifinfomsg`.
const LENGTH: u32 = 32;
const RTM_NEWLINK: u16 = 16;
const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
/// The index of the loopback interface, the first of each namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;

/// Turns the loopback interface on.
pub(crate) fn raise_loopback() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let [a, b] = RTM_NEWLINK.to_ne_bytes();
    let [c, d] = REQUEST_AND_ACKNOWLEDGE.to_ne_bytes();
    let kind = u32::from_ne_bytes([a, b, c, d]);
    let words = [LENGTH, kind, 1, 0, 0, LOOPBACK, IFF_UP, IFF_UP];
    let request = words.map(u32::to_ne_bytes).concat();
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &request, SendFlags::empty(), &kernel)?;
    // The acknowledgement is a header of 16 bytes and a negative error, or 0.
    let mut answer = [0; 1024];
    let length = read(&socket, &mut answer)?;
    match answer.get(..length).and_then(|answer| answer.get(16..20)) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(&[a, b, c, d]) => Err(io::Error::from_raw_os_error(
            i32::from_ne_bytes([a, b, c, d]).wrapping_neg(),
        )),
        _ => Err(io::Error::other("the answer is too short")),
    }
}

/// Returns the attempts to leave the network namespace of this process, as far as `/proc` shows them.
pub(super) fn attempts() -> NetworkAttempts {
    let read = |name| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
    count(&read("snmp"), &read("snmp6"))
}

/// Counts the attempts in the statistics of IPv4, a line of names and a line of numbers for each protocol, and of IPv6, a
/// name and a number in each line.
fn count(v4: &str, v6: &str) -> NetworkAttempts {
    let of_v4 = |protocol: &str, name: &str| {
        let mut lines = v4.lines().filter_map(|line| line.strip_prefix(protocol));
        let place = lines.next()?.split_whitespace().position(|it| it == name)?;
        let value = lines.next()?.split_whitespace().nth(place)?;
        value.parse::<u64>().ok()
    };
    let of_v6 = |name: &str| {
        let value = v6.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    let sum = |values: [Option<u64>; 2]| values.into_iter().flatten().fold(0, u64::saturating_add);
    NetworkAttempts {
        unroutable: sum([of_v4("Ip: ", "OutNoRoutes"), of_v6("Ip6OutNoRoutes")]),
        unanswered: sum([of_v4("Udp: ", "NoPorts"), of_v6("Udp6NoPorts")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_both_protocols_are_counted() {
        let v4 = "Ip: Forwarding OutNoRoutes ReasmOKs\nIp: 2 6 9\nIcmp: NoPorts\nIcmp: 9\n\
                  Udp: InDatagrams NoPorts\nUdp: 9 3\nUdpLite: NoPorts\nUdpLite: 9\n";
        let v6 = "Ip6InNoRoutes    9\nIp6OutNoRoutes   \t1\nUdp6NoPorts\t2\n";
        let expected = NetworkAttempts {
            unroutable: 7,
            unanswered: 5,
        };
        assert_eq!(count(v4, v6), expected);
        for odd in ["", "Ip: ", "Ip: OutNoRoutes\nIp: x", "Ip: OutNoRoutes"] {
            assert_eq!(count(odd, odd), NetworkAttempts::default(), "{odd}");
        }
    }
}
