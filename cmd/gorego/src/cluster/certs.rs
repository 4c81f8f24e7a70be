//! `gorego cluster certs`: the files for TLS between the nodes of a cluster.

use std::{
    fmt::Display,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf, absolute},
    time::{Duration, SystemTime},
};

use gorego_tls::{ClusterFiles, NodeIdentity, is_name};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::cli::Certs;

const DAY: Duration = Duration::from_hours(24);
const AUTHORITY_DAYS: u32 = 3652;
/// The time by which certificates are valid before now, since the clocks of nodes differ.
const SKEW: Duration = Duration::from_hours(1);
/// The mode of files with keys, and of others.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Makes the files, and prints their names and the settings of each node.
pub(crate) fn run(options: &Certs) -> Result<(), String> {
    let dir = absolute(&options.dir).map_err(|why| failed(&options.dir, why))?;
    let paths: Vec<_> = (options.nodes.iter())
        .map(|node| Paths::of(&dir, node))
        .collect();
    check(options, &paths)?;
    fs::create_dir_all(&dir).map_err(|why| failed(&dir, why))?;
    let (issuer, made) = authority(&options.name, &Paths::of(&dir, AUTHORITY))?;
    for path in &made {
        print(&path.display());
    }
    let ca_file = Paths::of(&dir, AUTHORITY).certificate;
    for (node, paths) in options.nodes.iter().zip(&paths) {
        let node = NodeIdentity {
            cluster: options.name.clone(),
            node: node.clone(),
        };
        issue(&node, options.days, &issuer, paths)?;
        verify(&node, paths, &ca_file)?;
        print(&paths.certificate.display());
        print(&paths.key.display());
    }
    for (node, paths) in options.nodes.iter().zip(&paths) {
        print(&format_args!(
            "\n# The settings of the node {node}:\n\
             cluster:\n  name: {}\n  node_id: {node}\n  tls:\n    cert_file: {}\n    key_file: {}\n    \
             ca_file: {}",
            options.name,
            paths.certificate.display(),
            paths.key.display(),
            ca_file.display()
        ));
    }
    print(&format_args!(
        "\n# Keep {} off the nodes: it makes nodes, which can run commands and change results.",
        Paths::of(&dir, AUTHORITY).key.display()
    ));
    Ok(())
}

/// The base name of the authority's files.
const AUTHORITY: &str = "ca";

/// The files of a certificate and its key.
struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn of(dir: &Path, name: &str) -> Self {
        Self {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        }
    }
}

/// Refuses names that nodes cannot have, and files that exist.
fn check(options: &Certs, paths: &[Paths]) -> Result<(), String> {
    for name in options.nodes.iter().chain([&options.name]) {
        if !is_name(name) {
            return Err(format!(
                "{name:?} is no name; accepted: 1 to 63 letters, digits, `.`, `_` and `-`"
            ));
        }
    }
    let mut nodes: Vec<_> = options.nodes.iter().collect();
    nodes.sort_unstable();
    if nodes
        .windows(2)
        .any(|pair| matches!(pair, [a, b] if a == b))
    {
        return Err("a node is named twice".to_owned());
    }
    if options.nodes.iter().any(|node| node == AUTHORITY) {
        return Err(format!(
            "a node {AUTHORITY:?} would have the files of the authority"
        ));
    }
    let files = paths.iter().flat_map(|it| [&it.certificate, &it.key]);
    match files
        .into_iter()
        .find(|file| file.symlink_metadata().is_ok())
    {
        Some(file) => Err(format!("{} exists and is not overwritten", file.display())),
        None => Ok(()),
    }
}

/// Returns the authority of a cluster, and the files that were made if there was none.
fn authority(
    cluster: &str,
    paths: &Paths,
) -> Result<(Issuer<'static, KeyPair>, Vec<PathBuf>), String> {
    let mut params = params(&format!("gorego cluster {cluster}"), AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if paths.certificate.exists() {
        let pem = fs::read_to_string(&paths.key).map_err(|why| failed(&paths.key, why))?;
        let key = KeyPair::from_pem(&pem).map_err(|why| failed(&paths.key, why))?;
        return Ok((Issuer::new(params, key), Vec::new()));
    }
    let key = KeyPair::generate().map_err(|why| failed(&paths.key, why))?;
    write(&paths.key, &key.serialize_pem(), SECRET)?;
    let certificate = params.self_signed(&key);
    let certificate = certificate.map_err(|why| failed(&paths.certificate, why))?;
    write(&paths.certificate, &certificate.pem(), PUBLIC)?;
    let made = vec![paths.certificate.clone(), paths.key.clone()];
    Ok((Issuer::new(params, key), made))
}

/// Writes the certificate of a node, and its key.
fn issue(
    node: &NodeIdentity,
    days: u32,
    issuer: &Issuer<'_, KeyPair>,
    paths: &Paths,
) -> Result<(), String> {
    let error = |why| failed(&paths.certificate, why);
    let mut params = params(&node.node, days);
    let uri = node.to_string().try_into().map_err(error)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().map_err(error)?;
    let certificate = params.signed_by(&key, issuer).map_err(error)?;
    write(&paths.key, &key.serialize_pem(), SECRET)?;
    write(&paths.certificate, &certificate.pem(), PUBLIC)
}

/// Loads the files of a node as the node will. Removes them if they cannot be used.
fn verify(node: &NodeIdentity, paths: &Paths, ca_file: &Path) -> Result<(), String> {
    let files = ClusterFiles {
        node: node.clone(),
        cert_file: paths.certificate.clone(),
        key_file: paths.key.clone(),
        ca_file: ca_file.to_owned(),
        clients_ca_file: None,
    };
    files.load().map(|_| ()).map_err(|why| {
        for file in [&paths.certificate, &paths.key] {
            let _ = fs::remove_file(file);
        }
        let (ca, cluster) = (ca_file.display(), &node.cluster);
        format!("{why}; {ca} has to be made by this command, for the cluster {cluster}")
    })
}

/// Creates the parameters of a certificate with this common name.
fn params(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), String> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
    written.map_err(|why| failed(path, why))
}

fn failed(path: &Path, why: impl Display) -> String {
    format!("{}: {why}", path.display())
}

/// Prints a line on standard output; ignores failures to write it.
fn print(line: &dyn Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
