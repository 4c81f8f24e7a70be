//! Detection of exhausted file descriptors.

use std::io;

use rustix::io::Errno;

/// Whether an operation failed because the process or the system is out of file descriptors.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    exhausted.contains(&error.raw_os_error())
}
