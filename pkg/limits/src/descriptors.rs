//! The limit on open files and sockets.

use std::io;

use rustix::io::Errno;

/// Reports whether the process or the system had no descriptor left for another file or socket.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    exhausted.contains(&error.raw_os_error())
}
