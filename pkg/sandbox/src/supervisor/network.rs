//! The loopback interface of a new network namespace.

use std::io;

use rustix::{
    io::read,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, sendto,
        socket_with,
    },
};

/// A request of type `RTM_NEWLINK` with an acknowledgement: a header and an `ifinfomsg`.
const LENGTH: u32 = 32;
const RTM_NEWLINK: u16 = 16;
const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
/// The index of the loopback interface, the first of each namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;

/// Turns the loopback interface on.
pub(super) fn raise_loopback() -> io::Result<()> {
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
